"""What every store means: the durable source of truth of all namespaces. Knows no database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from mac_core.errors import CorruptRecord
from mac_core.memory.copying import Source
from mac_core.memory.records import DocumentRecord
from mac_core.memory.restoring import NamespaceContent
from mac_core.types import DocumentInfo, DocumentPage, MetadataValue, NamespaceInfo

FILTERED_AT_ONCE = 4096  # documents that a filter looks at before others have their turn


class DocumentStamp(NamedTuple):
    """What decides whether a document that comes again is unchanged, and its result if so."""

    content_hash: str
    num_chunks: int
    num_tokens: int
    created_at: float  # seconds since the epoch
    version: int  # the namespace's version that wrote it


class Store(Protocol):
    """Durable documents in order of writing; an updated document moves to the end.

    A namespace's version starts at 0 and grows by one with every write that changes it; being
    created and being deleted are such writes, and a name that is used again goes on from where it
    was, so that no version is ever given twice. A write is one transaction: durable when the call
    returns, and wholly absent when it raises. One thread at a time. Every method raises StoreError
    when the store cannot do its work; reading a record's modulations also CorruptRecord and
    ForeignRecord.
    """

    @property
    def kind(self) -> str:
        """What it is, in a word for operators; any thread."""
        ...

    def put(self, namespace: str, records: Sequence[DocumentRecord]) -> int:
        """Write the records, replacing those with the same ids; the version that holds them.

        All get the same new version. An id that was there keeps its `created_at`. Of two records
        with one id the later stays. No record, no new version.

        Raises:
            InvalidInput: a record cannot be written as it is (not valid Unicode, not JSON).
        """
        ...

    def delete(
        self, namespace: str, ids: Sequence[str], *, expired_by: float | None = None
    ) -> tuple[tuple[str, ...], int]:
        """Remove what is there of `ids`: (removed ids, version); same version when nothing was.

        Args:
            expired_by: seconds since the epoch: only those whose `expires_at` is not after it,
                whatever another process has written since `expired` named them.
        """
        ...

    def get(self, namespace: str, document_id: str) -> DocumentRecord | None: ...

    def info(self, namespace: str, document_id: str) -> DocumentInfo | None:
        """One document with its text, whichever networks made its modulations."""
        ...

    def hashes(self, namespace: str, ids: Sequence[str]) -> dict[str, DocumentStamp]:
        """Stamps of those of `ids` that are there."""
        ...

    def scan(
        self, namespace: str, *, skip: Callable[[CorruptRecord], None] | None = None
    ) -> Iterator[DocumentRecord]:
        """Every document in order of writing; writes in between are allowed.

        Args:
            skip: told of each corrupt record, which is left out; None: it raises.
        """
        ...

    def list(
        self,
        namespace: str,
        *,
        limit: int,
        cursor: str | None = None,
        filter: Mapping[str, MetadataValue] | None = None,
    ) -> DocumentPage:
        """One page in order of writing; an empty `filter` matches all.

        A filter looks at no more than FILTERED_AT_ONCE documents for a page, which may then have
        fewer than `limit`, or none, and still a `next_cursor`.

        Raises:
            InvalidInput: a limit below one, or a cursor that no page gave.
        """
        ...

    def create_namespace(self, namespace: str) -> tuple[bool, int]:
        """Make an empty namespace: (whether it was not there, version)."""
        ...

    def drop_namespace(self, namespace: str) -> tuple[int | None, int]:
        """Remove a namespace whole: (documents that went, version); None: it was not there.

        The first write to its name makes it again, behind the same versions.
        """
        ...

    def restore(
        self, contents: Sequence[NamespaceContent], *, is_replacing: bool = False
    ) -> dict[str, int]:
        """Make each namespace hold exactly what `contents` says; its new version by name.

        One write for all of them. The version is behind those of both histories; other namespaces
        stay as they are.

        Args:
            is_replacing: a namespace may hold documents, which go.

        Raises:
            NamespaceNotEmpty: one holds documents, and they are not to be replaced.
        """
        ...

    def source(self) -> Source:
        """A reader of the records as they lie there; any thread may use it. Close it."""
        ...

    def namespaces(self) -> Sequence[NamespaceInfo]:
        """Every namespace that is there, by name."""
        ...

    def version(self, namespace: str) -> int: ...

    def expired(self, now: float) -> Sequence[tuple[str, str]]:
        """(namespace, id) of documents whose `expires_at` is not after `now`."""
        ...

    def check(self) -> None:
        """Return when the store can write now.

        Raises:
            StoreError: it cannot, and why.
        """
        ...

    def close(self) -> None:
        """Give everything back; closing twice is allowed."""
        ...
