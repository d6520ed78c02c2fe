"""Documents as they come: accepted or refused, compared with what is stored, cut, grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mac_core.config import EngineConfig
from mac_core.engine.learning import Learning, engine_failed
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.tickets import DocumentItem
from mac_core.engine.validation import check_document, check_name
from mac_core.errors import CorruptRecord, DocumentExists, MacError, StoreError
from mac_core.memory.bank import MemoryBank
from mac_core.memory.chunking import Chunk, chunk_text
from mac_core.memory.codebook_records import Codebooks
from mac_core.memory.records import content_hash, document_id
from mac_core.memory.store import DocumentStamp, Store
from mac_core.types import DocumentResult, DocumentStatus, EngineObserver


class DocumentOutcomes:
    """Tells tickets and the observer what became of each document. Engine thread only."""

    def __init__(self, bank: MemoryBank, observer: EngineObserver) -> None:
        self._bank = bank
        self._observer = observer

    def done(
        self,
        item: DocumentItem,
        name: str,
        status: DocumentStatus,
        *,
        num_chunks: int = 0,
        num_tokens: int = 0,
        version: int = 0,
        error: Exception | None = None,
    ) -> None:
        """`version`: the one that wrote the document; the bank itself may come to it later."""
        self._observer.count_documents(status, 1)
        item.ticket.record(
            item.index,
            DocumentResult(
                id=name,
                status=status,
                num_chunks=num_chunks,
                num_tokens=num_tokens,
                bank_version=max(version, self._bank.view(item.ticket.namespace).version),
                error=error,
            ),
        )

    def failed(self, item: DocumentItem, error: Exception, *, name: str) -> None:
        self.done(item, name, "failed", error=error)


class Intake:
    """Reads the store, writes nothing. Engine thread only."""

    def __init__(
        self,
        *,
        model: AnsweringModel,
        store: Store,
        bank: MemoryBank,
        config: EngineConfig,
        outcomes: DocumentOutcomes,
        observer: EngineObserver,
        clock: Callable[[], float],
    ) -> None:
        self._tokenizer = model.tokenizer
        self._store = store
        self._bank = bank
        self._max_document_chars = config.max_document_chars
        self._outcomes = outcomes
        self._observer = observer
        self._clock = clock
        amortization = model.config.amortization
        # The frame's markers are part of what the amortization network reads.
        self._max_chunk_tokens = amortization.max_tokens - len(model.layout.document([]))
        self._overlap_tokens = min(
            amortization.chunk_overlap_tokens, max(0, self._max_chunk_tokens - 1)
        )

    def groups(
        self, items: Sequence[DocumentItem], *, max_chunks: Callable[[], int]
    ) -> Iterator[list[Learning]]:
        """Documents of one namespace to learn together, in order.

        Whoever iterates commits a group before asking for the next: a document is compared with
        what is stored by then.

        Args:
            max_chunks: how many chunks fit one forward pass now; a longer document stands alone.
        """
        group: list[Learning] = []
        for item in items:
            name = self._checked_id(item)
            if name is None:
                continue
            if any(learning.id == name for learning in group):
                yield group  # the later text replaces it, and is compared with it
                group = []
            learning = self._begin(item, name)
            if learning is None:
                continue
            num_chunks = sum(len(other.chunks) for other in group) + len(learning.chunks)
            if group and num_chunks > max_chunks():
                yield group
                group = []
            group.append(learning)
        if group:
            yield group

    def _checked_id(self, item: DocumentItem) -> str | None:
        """The document's id; None when it has its outcome already."""
        document, ticket = item.document, item.ticket
        try:
            if ticket.is_cancelled:
                return None
            if ticket.has_expired(self._clock()):
                raise ticket.deadline_exceeded("before the document was learned")
            check_name(ticket.namespace, what="the namespace")
            check_document(document, max_chars=self._max_document_chars)
            return document.id or document_id(ticket.namespace, document.text)
        except MacError as error:
            self._outcomes.failed(item, error, name=document.id or "")
            return None

    def _begin(self, item: DocumentItem, name: str) -> Learning | None:
        """The document cut into chunks; None when it has its outcome already."""
        document, namespace = item.document, item.ticket.namespace
        try:
            stamp = self._stamp(namespace, name)
            digest = content_hash(document)
            if stamp is not None and not self._replaces(item, digest, stamp, name):
                self._outcomes.done(
                    item,
                    name,
                    "unchanged",
                    num_chunks=stamp.num_chunks,
                    num_tokens=stamp.num_tokens,
                    version=stamp.version,
                )
                return None
            chunks = self._cut(document.text)
        except Exception as error:
            self._outcomes.failed(item, engine_failed(error, doing="reading the text"), name=name)
            return None
        return Learning(
            item=item, id=name, content_hash=digest, is_new=stamp is None, chunks=chunks
        )

    def _stamp(self, namespace: str, name: str) -> DocumentStamp | None:
        try:
            return self._store.hashes(namespace, [name]).get(name)
        except Exception as error:
            self._observer.count_store_error("read")
            raise as_store_error(error) from error

    def _replaces(self, item: DocumentItem, digest: str, stamp: DocumentStamp, name: str) -> bool:
        """Whether the document takes the place of the stored one.

        One that is to live for a time lives anew when it comes again.

        Raises:
            DocumentExists: it would, and must not.
        """
        on_conflict = item.document.on_conflict
        if on_conflict == "skip" or (stamp.content_hash == digest and item.document.ttl_s is None):
            return self._is_corrupt(item.ticket.namespace, name)
        if on_conflict == "fail":
            raise DocumentExists(namespace=item.ticket.namespace, document_id=name)
        return True

    def _is_corrupt(self, namespace: str, name: str) -> bool:
        """Whether what is stored can never be served; what the bank holds was read already."""
        if self._bank.entries_of(namespace, name):
            return False
        try:
            record = self._store.get(namespace, name)
            if record is not None:
                Codebooks(self._store).bound(record)
        except CorruptRecord:
            return True
        except Exception as error:
            self._observer.count_store_error("read")
            raise as_store_error(error) from error
        return False

    def _cut(self, text: str) -> list[Chunk]:
        return chunk_text(
            text,
            self._tokenizer,
            max_tokens=self._max_chunk_tokens,
            overlap_tokens=self._overlap_tokens,
        )


def as_store_error(error: Exception) -> MacError:
    """`error` itself when a caller can act on it, else a StoreError without internals."""
    if isinstance(error, MacError):
        return error
    return StoreError(f"the store could not do its work: {type(error).__name__}")
