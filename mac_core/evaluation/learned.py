"""Documents into a memory bank without a store: what an evaluation reads is never durable.

Cut, quantised and keyed exactly as the engine does it, so that the measured bank is the served one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.offline import Advance, amortize_chunks, cut_document
from mac_core.engine.ports import AnsweringModel
from mac_core.errors import InvalidInput
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.records import DocumentRecord, StoredChunk, content_hash
from mac_core.types import DEFAULT_NAMESPACE, Document

DOCUMENT_KEY = "document"  # metadata by which a question can be confined to one document
Track = Callable[[str, int], Advance]  # told what begins, and how many there are


def untracked(what: str, total: int) -> Advance:
    """A `Track` for whoever watches nothing."""
    return lambda amount: None


def learn_documents(
    model: AnsweringModel,
    bank: MemoryBank,
    documents: Sequence[Document],
    *,
    batch_size: int,
    track: Track = untracked,
) -> BankView:
    """Amortize every document and publish them all as one version.

    Args:
        batch_size: chunks in one forward pass; chunks of like length go together.

    Raises:
        InvalidInput: two documents share an id, or one has nothing to learn.
    """
    records = learn_records(model, documents, batch_size=batch_size, track=track)
    return publish(model, bank, records, version=1)


def learn_records(
    model: AnsweringModel,
    documents: Sequence[Document],
    *,
    batch_size: int,
    bits: ModulationBits = DEFAULT_BITS,
    track: Track = untracked,
) -> list[DocumentRecord]:
    """As `learn_documents`, without publishing; `bits` for each stored value."""
    check_ids(documents)
    parts = [cut_document(model, document.text) for document in documents]
    flat = [chunk for chunks in parts for chunk in chunks]
    advance = track("learn", len(flat))
    stored = amortize_chunks(model, flat, batch_size=batch_size, bits=bits, advance=advance)
    rest = iter(stored)
    return [
        _record(document, tuple(next(rest) for _ in chunks))
        for document, chunks in zip(documents, parts, strict=True)
    ]


def check_ids(documents: Sequence[Document]) -> None:
    """Raises InvalidInput where two documents share an id."""
    if len({document.id for document in documents}) != len(documents):
        raise InvalidInput(f"{len(documents)} documents do not have as many ids")


def publish(
    model: AnsweringModel, bank: MemoryBank, records: Sequence[DocumentRecord], *, version: int
) -> BankView:
    """Add learned documents to the bank, keyed from what a restart would read back."""
    keys = [
        [model.aggregation_keys(part.stored.unpack()) for part in record.chunks]
        for record in records
    ]
    return bank.apply(DEFAULT_NAMESPACE, version, (), records, keys)


def _record(document: Document, chunks: tuple[StoredChunk, ...]) -> DocumentRecord:
    return DocumentRecord(
        id=str(document.id),
        namespace=DEFAULT_NAMESPACE,
        title=document.title,
        text=document.text,
        metadata={DOCUMENT_KEY: str(document.id)},
        published_at=document.published_at,
        expires_at=None,
        created_at=0.0,  # no time passes in an evaluation
        updated_at=0.0,
        content_hash=content_hash(document),
        num_tokens=sum(part.chunk.num_tokens for part in chunks),
        chunks=chunks,
    )
