"""Make what a store holds smaller, batch by batch, each a write that servers follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import torch
from torch import Tensor

from mac_core.config import DEFAULT_BITS
from mac_core.engine.ports import AnsweringModel
from mac_core.errors import CorruptRecord, InvalidInput
from mac_core.memory.codebook import Codebook, train_codebook
from mac_core.memory.codebook_records import codebook_record, is_own_id, stored_codebooks
from mac_core.memory.compaction import (
    Compaction,
    compact_record,
    frame_head,
    is_compacted,
    make_compaction,
)
from mac_core.memory.opening import open_store
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store

DOCUMENTS_AT_ONCE = 64  # of one write; a killed run compacts as many again
CHUNKS_AT_ONCE = 256  # of the draw for a codebook
TRAINING_SLOTS = 16_384  # drawn for a codebook, from however many there are


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionReport:
    """What a namespace was and became; bytes are those of the modulations."""

    namespace: str
    num_documents: int
    num_rewritten: int  # the others were compacted before, or had nothing to gain
    bytes_before: int
    bytes_after: int
    codebook_bytes: int  # shared by all; 0: no codebook
    has_new_codebook: bool = False  # made by this run, so that its bytes are more than there were
    num_corrupt: int = 0  # left as they are

    def sentence(self, *, is_dry_run: bool) -> str:
        """For whoever ran the command."""
        would = "would be " if is_dry_run else ""
        book = f" and a codebook of {self.codebook_bytes:,}" if self.codebook_bytes else ""
        book += " that was there" if book and not self.has_new_codebook else ""
        return (
            f"{self.namespace}: {self.num_rewritten} of {self.num_documents} documents "
            f"{would}rewritten, {self.bytes_before:,} bytes of modulations {would}"
            f"{self.bytes_after:,}{book}"
            + (f"; {self.num_corrupt} corrupt left as they are" if self.num_corrupt else "")
            + ("; the codebook takes more than it saves" if self.is_larger else "")
        )

    @property
    def is_larger(self) -> bool:
        """Whether the namespace takes more than before: few documents do not pay for a codebook."""
        added = self.codebook_bytes if self.has_new_codebook else 0
        return self.bytes_after + added > self.bytes_before


Advance = Callable[[int], None]


def compact(
    store: Store,
    model: AnsweringModel,
    compaction: Compaction,
    *,
    namespaces: Sequence[str] | None = None,
    is_dry_run: bool = False,
    advance: Advance = lambda amount: None,
) -> list[CompactionReport]:
    """Rewrite every document that can be smaller; run again, it rewrites none.

    Text, metadata, times and hashes stay, so that a document that comes again is unchanged; a
    corrupt record stays as it is. Each write leaves a readable store: a run that was cut short is
    run again. Nobody else should write: a document that is written or removed at the very moment
    of its batch's own write could come back as it was.

    Args:
        namespaces: None: all.
        is_dry_run: only say what would come of it.
        advance: told how many more documents were looked at.

    Raises:
        InvalidInput: a namespace that was never written, or a method that does not go with the
            model's slots.
        StoreError: the store cannot be used.
    """
    known = [info.namespace for info in store.namespaces()]
    missing = sorted(set(namespaces or ()) - set(known))
    if missing:
        raise InvalidInput(f"no namespace {', '.join(missing)}; there are {', '.join(known)}")
    run = _Run(store, model, compaction, is_dry_run=is_dry_run, advance=advance)
    return [run.compact(name) for name in (known if namespaces is None else namespaces)]


class _Run:
    """One compaction under way."""

    def __init__(
        self,
        store: Store,
        model: AnsweringModel,
        compaction: Compaction,
        *,
        is_dry_run: bool,
        advance: Advance,
    ) -> None:
        self._store = store
        self._compaction = compaction
        self._is_dry_run = is_dry_run
        self._advance = advance
        self._num_head = frame_head(model.layout)

    def compact(self, namespace: str) -> CompactionReport:
        codebook, is_new = None, False
        if self._compaction.method == "codebook":
            codebook, is_new = self._codebook(namespace)
        num_documents = num_rewritten = before = after = 0
        corrupt = list[CorruptRecord]()
        records = self._documents(namespace, skip=corrupt.append)
        while part := list(islice(records, DOCUMENTS_AT_ONCE)):
            smaller = [
                compact_record(record, self._compaction, codebook=codebook, num_head=self._num_head)
                for record in part
            ]
            changed = [new for old, new in zip(part, smaller, strict=True) if new is not old]
            if not self._is_dry_run:
                self._write(namespace, changed)
            num_documents += len(part)
            num_rewritten += len(changed)
            before += sum(record.num_bytes for record in part)
            after += sum(record.num_bytes for record in smaller)
            self._advance(len(part))
        return CompactionReport(
            namespace=namespace,
            num_documents=num_documents,
            num_rewritten=num_rewritten,
            bytes_before=before,
            bytes_after=after,
            codebook_bytes=0 if codebook is None else codebook.num_bytes,
            has_new_codebook=is_new,
            num_corrupt=len(corrupt),
        )

    def _write(self, namespace: str, changed: Sequence[DocumentRecord]) -> None:
        """What others have written or removed since it was read is left as they want it."""
        stamps = self._store.hashes(namespace, [record.id for record in changed])
        same = [r for r in changed if r.id in stamps and stamps[r.id].version == r.version]
        if same:
            self._store.put(namespace, same)

    def _documents(
        self, namespace: str, *, skip: Callable[[CorruptRecord], None] = lambda error: None
    ) -> Iterator[DocumentRecord]:
        """In order of writing, up to what is written from now on: a rewritten one moves there."""
        last = self._store.version(namespace)
        records = self._store.scan(namespace, skip=skip)
        found = takewhile(lambda record: record.version <= last, records)
        return (record for record in found if not is_own_id(record.id))

    def _codebook(self, namespace: str) -> tuple[Codebook | None, bool]:
        """The namespace's own of that size, else one trained on it, and whether it was trained.

        None: nothing to code.
        """
        sample = sampled_slots(self._documents(namespace))
        if not len(sample):
            return None, False
        num_parts = self._compaction.num_parts(sample.shape[1])
        for codebook in stored_codebooks(self._store, namespace):
            if (codebook.num_parts, codebook.width) == (num_parts, sample.shape[1]):
                return codebook, False
        trained = train_codebook(sample, num_parts=num_parts)
        if not self._is_dry_run:
            record = codebook_record(trained, namespace=namespace, now=time.time())
            self._store.put(namespace, [record])
        return trained, True


def sampled_slots(records: Iterator[DocumentRecord]) -> Tensor:
    """At most `TRAINING_SLOTS` slots of what is not compacted, each as likely as any other."""
    generator = torch.Generator().manual_seed(0)
    parts = (part for record in records for part in record.chunks)
    wanted = (part.stored.unpack().slots for part in parts if not is_compacted(part.stored))
    slots, luck = torch.empty(0, 0), torch.empty(0)
    while some := list(islice(wanted, CHUNKS_AT_ONCE)):
        slots = torch.cat([*([slots] if len(slots) else []), *some])
        luck = torch.cat([luck, torch.rand(len(slots) - len(luck), generator=generator)])
        kept = luck.topk(min(TRAINING_SLOTS, len(luck))).indices
        slots, luck = slots[kept], luck[kept]
    return slots


def compact_with_bundle(
    store_url: str,
    bundle: Path,
    *,
    method: str,
    target: float,
    bits: int = DEFAULT_BITS,
    namespaces: Sequence[str] | None = None,
    is_dry_run: bool = False,
    begin: Advance = lambda amount: None,
    advance: Advance = lambda amount: None,
) -> list[CompactionReport]:
    """As `compact`, in a store that no server uses, for the model of a bundle.

    Args:
        method, target, bits: of `Compaction`.
        begin: told about how many documents there are, before the first is looked at.

    Raises:
        CheckpointError: the bundle is not whole.
        InvalidInput, StoreError: as `compact`; or there is no such compaction.
    """
    compaction = make_compaction(method, target=target, bits=bits)
    from mac_core.networks.build import load_bundle  # here: the weights are for the work alone

    model = load_bundle(bundle)
    store = open_store(store_url, fingerprint=model.fingerprint)
    try:
        found = [i for i in store.namespaces() if namespaces is None or i.namespace in namespaces]
        begin(sum(info.num_documents for info in found))
        return compact(
            store,
            model,
            compaction,
            namespaces=namespaces,
            is_dry_run=is_dry_run,
            advance=advance,
        )
    finally:
        store.close()
