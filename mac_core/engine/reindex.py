"""Make a store's modulations anew from its texts, after another bundle was put in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.offline import amortize_chunks, cut_document
from mac_core.engine.ports import AnsweringModel
from mac_core.errors import CorruptRecord
from mac_core.memory.codebook_records import is_own_id
from mac_core.memory.copying import RawRecord
from mac_core.memory.opening import open_source, open_store
from mac_core.memory.record_format import check_record
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store
from mac_core.types import Fingerprint

DOCUMENTS_AT_ONCE = 64

Advance = Callable[[int], None]
Begin = Callable[[int], None]


def nothing(amount: int) -> None:
    """For whoever shows no progress."""


def reindex(
    store_url: str,
    model: AnsweringModel,
    *,
    batch_size: int = 16,
    bits: ModulationBits = DEFAULT_BITS,
    everything: bool = False,
    begin: Begin = nothing,
    advance: Advance = nothing,
) -> int:
    """Re-learn in place every document that other networks have made; returns how many.

    In the order of writing, which stays. Each transaction leaves a readable store, and a run that
    was cut short goes on where it was: what it had done is the present networks' own. A corrupt
    record has no text to learn and stays as it is.

    Args:
        bits: of each stored value.
        everything: what the present networks have made too: what was compacted is whole again, and
            codebooks, corrupt ones too, are gone.
        begin: told how many documents there are to do.
        advance: told how many more are done.

    Raises:
        StoreError: the directory is in use by a server, or the store cannot be read or written.
    """
    # Held open as long as this runs, so that no server begins on it in the middle.
    with closing(open_store(store_url, fingerprint=model.fingerprint)) as store:
        work = _work(store_url, None if everything else model.fingerprint)
        begin(sum(len(found.ids) for found in work.values()))
        count = 0
        for namespace, found in work.items():
            for start in range(0, len(found.ids), DOCUMENTS_AT_ONCE):
                part = found.ids[start : start + DOCUMENTS_AT_ONCE]
                records = _without_chunks(store, namespace, part)
                learned = [_learned(model, record, batch_size, bits) for record in records]
                store.put(namespace, learned)
                count += len(records)
                advance(len(part))
            store.delete(namespace, found.codebooks)  # last: nothing needs them now
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is to be made anew in one namespace."""

    ids: Sequence[str]  # of documents, in order of writing
    codebooks: Sequence[str]  # own ids of records that nothing needs afterwards


def _work(store_url: str, current: Fingerprint | None) -> dict[str, _Found]:
    """By namespace, what other networks than `current` (None: whichever) have made."""
    found: dict[str, _Found] = {}
    with closing(open_source(store_url)) as source:
        for info in source.namespaces():
            made_by: dict[str, Fingerprint | None] = {}

            def keep(record: RawRecord, made_by: dict[str, Fingerprint | None] = made_by) -> None:
                try:
                    made_by[record.id] = check_record(record.header, record.payload)
                except CorruptRecord:
                    made_by[record.id] = None

            ids = source.copy(info.namespace, keep).ids
            due = [name for name in ids if made_by[name] not in (None, current)]
            found[info.namespace] = _Found(
                ids=[name for name in due if not is_own_id(name)],
                # A corrupt one as well, when nothing coded by it is left.
                codebooks=[n for n in ids if is_own_id(n) and (n in due or current is None)],
            )
    return found


def _without_chunks(store: Store, namespace: str, ids: Sequence[str]) -> list[DocumentRecord]:
    """Those of `ids` that are still there; what other networks made of them is left behind."""
    stamps = store.hashes(namespace, ids)
    infos = [info for name in stamps if (info := store.info(namespace, name)) is not None]
    records = [
        DocumentRecord(
            id=info.id,
            namespace=namespace,
            title=info.title,
            text=info.text or "",
            metadata=info.metadata,
            published_at=info.published_at,
            expires_at=info.expires_at,
            created_at=info.created_at,
            updated_at=info.updated_at,
            content_hash=stamps[info.id].content_hash,
            num_tokens=info.num_tokens,
            pinned=info.pinned,
            chunks=(),
        )
        for info in infos
    ]
    return sorted(records, key=lambda record: ids.index(record.id))


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
    everything: bool = False,
    begin: Begin = nothing,
    advance: Advance = nothing,
) -> int:
    """As `reindex`, with the model of a bundle.

    Raises:
        CheckpointError: the bundle is not whole.
        StoreError: as `reindex`.
    """
    from mac_core.networks.build import load_bundle  # here: torch is for the work alone

    model = load_bundle(bundle, device=device)
    return reindex(store_url, model, bits=bits, everything=everything, begin=begin, advance=advance)
