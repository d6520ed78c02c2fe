"""Make a store's modulations anew from its texts, after another bundle was put in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.offline import amortize_chunks, cut_document
from mac_core.engine.ports import AnsweringModel
from mac_core.memory.codebook_records import is_own_id, own_ids
from mac_core.memory.opening import open_store
from mac_core.memory.records import DocumentRecord

DOCUMENTS_AT_ONCE = 64


def reindex(
    store_url: str,
    model: AnsweringModel,
    *,
    batch_size: int = 16,
    bits: ModulationBits = DEFAULT_BITS,
    advance: Callable[[int], None] = lambda amount: None,
) -> int:
    """Re-learn every document in place, in the order of writing; returns how many.

    What was compacted is whole again, and codebooks are gone. Each transaction leaves a readable
    store: a run that was cut short is run again.

    Raises:
        StoreError: the directory is in use by a server, or a record cannot be read.
    """
    texts = _without_chunks(store_url)
    store = open_store(store_url, fingerprint=model.fingerprint)
    try:
        for namespace, records in texts.items():
            rest = iter(records)
            while part := list(islice(rest, DOCUMENTS_AT_ONCE)):
                learned = [_learned(model, record, batch_size, bits) for record in part]
                store.put(namespace, learned)
                advance(len(part))
            store.delete(namespace, own_ids(store, namespace))  # last: nothing needs them now
    finally:
        store.close()
    return sum(map(len, texts.values()))


def _without_chunks(store_url: str) -> dict[str, list[DocumentRecord]]:
    """Every document by namespace, whoever made its modulations; those are left behind."""
    store = open_store(store_url, fingerprint=None)
    try:
        return {
            info.namespace: [
                replace(record, chunks=())
                for record in store.scan(info.namespace)
                if not is_own_id(record.id)
            ]
            for info in store.namespaces()
        }
    finally:
        store.close()


def _learned(
    model: AnsweringModel, record: DocumentRecord, batch_size: int, bits: ModulationBits
) -> DocumentRecord:
    chunks = cut_document(model, record.text)
    return replace(
        record,
        chunks=tuple(amortize_chunks(model, chunks, batch_size=batch_size, bits=bits)),
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
    )


def reindex_with_bundle(
    store_url: str,
    bundle: Path,
    *,
    device: str = "cpu",
    bits: ModulationBits = DEFAULT_BITS,
    advance: Callable[[int], None] = lambda amount: None,
) -> int:
    """As `reindex`, with the model of a bundle.

    Raises:
        CheckpointError: the bundle is not whole.
        StoreError: the directory is in use by a server, or a record cannot be read.
    """
    from mac_core.networks.build import load_bundle  # here: torch is for the work alone

    return reindex(store_url, load_bundle(bundle, device=device), bits=bits, advance=advance)
