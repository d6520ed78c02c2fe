"""Documents on their way into the bank: from an accepted text to a record with its keys.

The amortization of a group of documents, isolated so that one bad document fails alone. Writes
nothing: `ingest` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.batch_cap import BatchCap, is_out_of_memory
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.tickets import DocumentItem
from mac_core.errors import EngineFailed, MacError
from mac_core.memory.chunking import Chunk
from mac_core.memory.records import DocumentRecord, StoredChunk, pack
from mac_core.networks.aggregation import AggregationKeys
from mac_core.types import EngineObserver, Modulation


@dataclass(kw_only=True, eq=False)
class Learning:
    """One accepted document while it is learned; `error` set means that it will not be."""

    item: DocumentItem
    id: str
    content_hash: str
    is_new: bool
    chunks: Sequence[Chunk]
    stored: list[StoredChunk] = field(default_factory=list)  # the first chunks so far
    aggregation_keys: list[AggregationKeys] = field(default_factory=list)  # theirs
    error: Exception | None = None

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    def to_record(self, *, now: float) -> DocumentRecord:
        """The document as the store keeps it. `now`: seconds since the epoch."""
        document = self.item.document
        return DocumentRecord(
            id=self.id,
            namespace=self.item.ticket.namespace,
            title=document.title,
            text=document.text,
            metadata=document.metadata,
            published_at=document.published_at,
            expires_at=None if document.ttl_s is None else now + document.ttl_s,
            created_at=now,
            updated_at=now,
            content_hash=self.content_hash,
            num_tokens=self.num_tokens,
            chunks=tuple(self.stored),
            pinned=document.pinned,
        )


Part = Sequence[tuple[Learning, Chunk]]


class Amortizer:
    """Runs the amortization network over chunks of several documents. Engine thread only."""

    def __init__(
        self,
        model: AnsweringModel,
        *,
        max_batch_chunks: int,
        observer: EngineObserver,
        bits: ModulationBits = DEFAULT_BITS,
    ) -> None:
        """`bits`: of each stored value of a modulation."""
        self._model = model
        self._bits = bits
        self._observer = observer
        self.cap = BatchCap(max_batch_chunks)

    def amortize(self, part: Part) -> None:
        """Add each chunk as it is stored to its document; one that cannot be learned gets `error`.

        One forward pass. A pass that fails is repeated in smaller parts: halves when memory ran
        out, else document by document.
        """
        part = [(learning, chunk) for learning, chunk in part if learning.error is None]
        if not part:
            return
        failure = self._forward(part)
        if failure is None:
            self.cap.grow(len(part))
            return
        for smaller in self._divide(part, failure):
            self.amortize(smaller)

    def _keep(self, learning: Learning, chunk: Chunk, modulation: Modulation) -> None:
        """Quantise, and make the aggregation keys from what will be read back after a restart."""
        if learning.error is not None:
            return
        try:
            stored = pack(modulation, bits=self._bits)
            keys = self._model.aggregation_keys(stored.unpack())
        except Exception as error:
            learning.error = engine_failed(error, doing="learning the document")
            return
        learning.stored.append(StoredChunk(chunk=chunk, stored=stored))
        learning.aggregation_keys.append(keys)

    def _forward(self, part: Part) -> Exception | None:
        self._observer.observe_batch("documents", len(part))
        try:
            modulations = self._model.amortize([chunk.text for _, chunk in part])
            if len(modulations) != len(part):
                raise RuntimeError(f"{len(part)} chunks, {len(modulations)} modulations")
        except Exception as error:
            return error.with_traceback(None)  # its frames would hold the pass's tensors
        for (learning, chunk), modulation in zip(part, modulations, strict=True):
            self._keep(learning, chunk, modulation)
        return None

    def _divide(self, part: Part, failure: Exception) -> list[Part]:
        """Smaller parts to try; none when the failure is one document's own."""
        if is_out_of_memory(failure) and len(part) > 1:
            self.cap.halve(len(part))
            middle = len(part) // 2
            return [part[:middle], part[middle:]]
        learnings = list(dict.fromkeys(learning for learning, _ in part))
        if len(learnings) > 1:
            return [[pair for pair in part if pair[0] is one] for one in learnings]
        learnings[0].error = engine_failed(failure, doing="learning the document")
        return []


def engine_failed(error: BaseException, *, doing: str) -> Exception:
    """`error` itself when a caller can act on it, else EngineFailed without internals."""
    if isinstance(error, MacError):
        return error
    failed = EngineFailed(f"{doing} failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed
