"""Codebooks as records of their namespace: written, followed, copied and checked as documents are.

Their ids begin with a control character, which no caller's id may hold, so that the two never meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mac_core.errors import CorruptRecord
from mac_core.memory.codebook import Codebook
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store

PREFIX = "\x1fcodebook/"
LISTED_AT_ONCE = 500


def is_own_id(document_id: str) -> bool:
    """Whether a record is the bank's own: not listed, read or removed as a document."""
    return document_id.startswith(PREFIX)


def codebook_record(codebook: Codebook, *, namespace: str, now: float) -> DocumentRecord:
    """A record without text or chunks. `now`: seconds since the epoch."""
    return DocumentRecord(
        id=PREFIX + codebook.id,
        namespace=namespace,
        title=None,
        text="",
        metadata={},
        published_at=None,
        expires_at=None,
        created_at=now,
        updated_at=now,
        content_hash=codebook.id,
        num_tokens=0,
        chunks=(),
        codebook=codebook,
    )


def own_ids(store: Store, namespace: str) -> list[str]:
    """Of the bank's own records in a namespace, in order of writing."""
    found: list[str] = []
    cursor, is_over = None, False
    while not is_over:
        page = store.list(namespace, limit=LISTED_AT_ONCE, cursor=cursor)
        found += [info.id for info in page.documents if is_own_id(info.id)]
        cursor, is_over = page.next_cursor, page.next_cursor is None
    return found


def stored_codebooks(store: Store, namespace: str) -> Iterator[Codebook]:
    """Every codebook of a namespace that can be read."""
    for name in own_ids(store, namespace):
        try:
            found = store.get(namespace, name)
        except CorruptRecord:  # scans tell of it
            continue
        if found is not None and found.codebook is not None:
            yield found.codebook


class Codebooks:
    """Gives records the codebooks that they were coded by; reads each once. One thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Codebook] = {}

    def bound(self, record: DocumentRecord) -> DocumentRecord:
        """The record, ready to be unpacked.

        Raises:
            CorruptRecord: its codebook is not in the store, or is corrupt itself.
            StoreError: the store cannot be read.
        """
        wanted = {part.stored.encoding.codebook_id for part in record.chunks} - {None}
        if not wanted:
            return record
        books = {name: self._codebook(record, str(name)) for name in wanted}
        chunks = tuple(
            replace(
                part,
                stored=replace(part.stored, codebook=books.get(part.stored.encoding.codebook_id)),
            )
            for part in record.chunks
        )
        return replace(record, chunks=chunks)

    def _codebook(self, record: DocumentRecord, name: str) -> Codebook:
        if name not in self._known:
            found = self._store.get(record.namespace, PREFIX + name)
            if found is None or found.codebook is None:
                raise CorruptRecord(
                    f"document {record.id!r} of namespace {record.namespace!r}: its codebook "
                    f"{name} is not in the store; run `mac bank reindex --all`"
                )
            self._known[name] = found.codebook
        return self._known[name]
