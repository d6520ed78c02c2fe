"""Learned documents kept between evaluations, in a store of their own; knows no protocol.

What other weights or other code learned, or another device or in other bits, lies in a namespace of
its own. A document is found by its text, so that any protocol's documents serve any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.ports import AnsweringModel
from mac_core.evaluation.learned import (
    DOCUMENT_KEY,
    Track,
    check_ids,
    learn_records,
    publish,
    untracked,
)
from mac_core.evaluation.origin import code_sha256
from mac_core.evaluation.parts import parts_of
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.records import DocumentRecord, content_hash
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.types import DEFAULT_NAMESPACE, Document, Fingerprint

DOCUMENTS_AT_ONCE = 256  # a killed run learns as many again


class LearnedCache:
    """A directory of learned documents; one process at a time. Without one it remembers nothing.

    Raises:
        StoreError: the directory is in use, or holds something else.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        fingerprint: Fingerprint,
        device: str = "cpu",
        bits: ModulationBits = DEFAULT_BITS,
    ) -> None:
        """
        Args:
            device: on which the documents are learned.
            bits: of each stored value of what is learned.
        """
        self.bits = bits
        self._namespace = _namespace(fingerprint, device, bits)
        self._store = None if directory is None else SqliteStore(directory, fingerprint=fingerprint)

    def __enter__(self) -> LearnedCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            self._store.close()

    def read(self, document: Document) -> DocumentRecord | None:
        """The document as it was learned, under the name that it has now."""
        if self._store is None:
            return None
        kept = self._store.get(self._namespace, self._key(document))
        return None if kept is None else _renamed(kept, document)

    def keep(self, documents: Sequence[Document], records: Sequence[DocumentRecord]) -> None:
        """Keep what was made of the documents, durably."""
        if self._store is None:
            return
        pairs = zip(documents, records, strict=True)
        self._store.put(
            self._namespace,
            [
                replace(record, id=self._key(document), namespace=self._namespace)
                for document, record in pairs
            ],
        )

    @staticmethod
    def _key(document: Document) -> str:
        return content_hash(Document(text=document.text))


class GrowingBank:
    """A bank that learns documents part by part, reading what a cache holds already."""

    def __init__(
        self,
        model: AnsweringModel,
        *,
        cache: LearnedCache,
        batch_size: int,
        device: str = "cpu",
        track: Track = untracked,
    ) -> None:
        self.bank = MemoryBank(model.config.selection, device=device)
        self.num_learned_chunks = 0  # that no cache held
        self.learn_seconds: float | None = None  # of these, amortization to publishing; None: none
        self._model = model
        self._cache = cache
        self._batch_size = batch_size
        self._track = track

    @property
    def view(self) -> BankView:
        return self.bank.view(DEFAULT_NAMESPACE)

    def add(self, documents: Sequence[Document]) -> BankView:
        """Learn the documents after those that are there, as a following version.

        Raises:
            InvalidInput: two documents share an id, or one has nothing to learn.
        """
        check_ids(documents)
        advance = self._track("learn", len(documents))
        for part in parts_of(documents, DOCUMENTS_AT_ONCE):
            learned = learn_part(self._model, part, cache=self._cache, batch_size=self._batch_size)
            started = perf_counter()
            publish(self._model, self.bank, learned.records, version=self.view.version + 1)
            self._count(learned, publishing=perf_counter() - started)
            advance(len(part))
        return self.view

    def _count(self, part: LearnedPart, *, publishing: float) -> None:
        """Add what was learned, with its share of the seconds that publishing took."""
        if not part.num_learned:
            return
        share = part.num_learned / sum(len(record.chunks) for record in part.records)
        self.num_learned_chunks += part.num_learned
        self.learn_seconds = (self.learn_seconds or 0.0) + part.seconds + share * publishing


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPart:
    """Some documents as they were learned, now or before."""

    records: list[DocumentRecord]
    num_learned: int  # chunks learned now
    seconds: float  # that these took


def learn_part(
    model: AnsweringModel,
    documents: Sequence[Document],
    *,
    cache: LearnedCache,
    batch_size: int,
) -> LearnedPart:
    """Of each document, in order; what no cache holds is learned together and kept."""
    found = {document.id: cache.read(document) for document in documents}
    missing = [document for document in documents if found[document.id] is None]
    started = perf_counter()
    learned = learn_records(model, missing, batch_size=batch_size, bits=cache.bits)
    seconds = perf_counter() - started
    cache.keep(missing, learned)
    made = {record.id: record for record in learned}
    return LearnedPart(
        records=[found[document.id] or made[str(document.id)] for document in documents],
        num_learned=sum(len(record.chunks) for record in learned),
        seconds=seconds,
    )


def _namespace(fingerprint: Fingerprint, device: str, bits: ModulationBits) -> str:
    """By all that decides what is learned of a text."""
    weights = f"{fingerprint.amortization_hash[:16]}-{fingerprint.base_lm_hash[:16]}"
    return f"{weights}-{code_sha256()[:16]}-{device}-{bits}"


def _renamed(record: DocumentRecord, document: Document) -> DocumentRecord:
    return replace(
        record,
        id=str(document.id),
        namespace=DEFAULT_NAMESPACE,
        title=document.title,
        text=document.text,
        metadata={DOCUMENT_KEY: str(document.id)},
    )
