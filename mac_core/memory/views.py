"""One namespace's bank: its immutable views, and the shelf that publishes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mac_core.memory.index import Bm25Index, GrowingTensor
from mac_core.memory.records import DocumentRecord, StoredModulation
from mac_core.types import MetadataValue

if TYPE_CHECKING:
    from mac_core.networks.aggregation import AggregationKeys


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankEntry:
    """One chunk of a document, ready to be selected and aggregated."""

    document_id: str
    chunk: int  # place among the document's chunks
    title: str | None
    text: str  # of the chunk
    start: int  # where the chunk begins in the document's text, in characters
    num_tokens: int
    metadata: Mapping[str, MetadataValue]
    published_at: float | None  # seconds since the epoch
    expires_at: float | None
    stored: StoredModulation
    aggregation_keys: AggregationKeys | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankView:
    """One namespace's bank at one version; never changes, safe to read from any thread."""

    namespace: str
    version: int
    entries: tuple[BankEntry, ...]  # (bank_size,), order of writing; an update moves to the end
    selection_keys: Tensor  # (bank_size, d_key), float32, unit length
    rows: Tensor  # (bank_size,), int64, ascending: what the BM25 index calls the entries
    published_at: Tensor  # (bank_size,), float64, -inf: not known
    expires_at: Tensor  # (bank_size,), float64, inf: never
    num_documents: int
    num_bytes: int  # of the quantised modulations


def empty_view(namespace: str, *, d_key: int, device: str) -> BankView:
    """What a namespace is before its first write."""
    return BankView(
        namespace=namespace,
        version=0,
        entries=(),
        selection_keys=torch.empty(0, d_key, device=device),
        rows=torch.empty(0, dtype=torch.int64),
        published_at=torch.empty(0, dtype=torch.float64),
        expires_at=torch.empty(0, dtype=torch.float64),
        num_documents=0,
        num_bytes=0,
    )


def entries_of(
    record: DocumentRecord, aggregation_keys: Sequence[AggregationKeys | None]
) -> list[BankEntry]:
    """One entry for each chunk.

    Raises:
        ValueError: there are not as many keys as chunks.
    """
    return [
        BankEntry(
            document_id=record.id,
            chunk=part.chunk.index,
            title=record.title,
            text=part.chunk.text,
            start=part.chunk.start,
            num_tokens=part.chunk.num_tokens,
            metadata=record.metadata,
            published_at=record.published_at,
            expires_at=record.expires_at,
            stored=part.stored,
            aggregation_keys=keys,
        )
        for part, keys in zip(record.chunks, aggregation_keys, strict=True)
    ]


class Shelf:
    """The growing side of one namespace's views. Engine thread only; `view` from any.

    Appending costs the new rows only; removing compacts, so that the next view is that of a bank
    which never held what was removed.
    """

    def __init__(self, namespace: str, *, d_key: int, device: str) -> None:
        self.index = Bm25Index()
        self.view = empty_view(namespace, d_key=d_key, device=device)
        self._keys = GrowingTensor(self.view.selection_keys)
        self._rows = GrowingTensor(self.view.rows)
        self._published_at = GrowingTensor(self.view.published_at)
        self._expires_at = GrowingTensor(self.view.expires_at)
        self._columns = (self._keys, self._rows, self._published_at, self._expires_at)
        self._entries: tuple[BankEntry, ...] = ()
        self._chunks_of: Counter[str] = Counter()
        self._num_bytes = 0
        self._next_row = 1

    def stack_keys(self, entries: Sequence[BankEntry]) -> Tensor:
        """The entries' selection keys, `(entries, d_key)`.

        Raises:
            ValueError: a key has another width than the bank's.
        """
        d_key = self._keys.rows.shape[1]
        keys = [entry.stored.selection_key_float() for entry in entries]
        for entry, key in zip(entries, keys, strict=True):
            if key.shape != (d_key,):
                shape = tuple(key.shape)
                raise ValueError(
                    f"document {entry.document_id!r}: selection key is {shape}, not ({d_key},)"
                )
        return torch.stack(keys) if keys else torch.empty(0, d_key)

    def remove(self, ids: Collection[str]) -> None:
        """Take every chunk of the documents `ids` off; unknown ids are no error."""
        gone = {name for name in ids if name in self._chunks_of}
        if not gone:
            return
        kept: list[int] = []
        for place, (entry, row) in enumerate(
            zip(self._entries, self._rows.rows.tolist(), strict=True)
        ):
            if entry.document_id in gone:
                self.index.remove(row)
                self._num_bytes -= entry.stored.num_bytes
            else:
                kept.append(place)
        for column in self._columns:
            column.keep(torch.tensor(kept, dtype=torch.int64))
        self._entries = tuple(self._entries[place] for place in kept)
        for name in gone:
            del self._chunks_of[name]

    def append(self, entries: Sequence[BankEntry], keys: Tensor) -> None:
        """Add entries and their selection keys, `(entries, d_key)`, at the end."""
        rows = range(self._next_row, self._next_row + len(entries))
        for row, entry in zip(rows, entries, strict=True):
            self.index.add(row, entry.text)
        published = [_or(entry.published_at, -torch.inf) for entry in entries]
        expires = [_or(entry.expires_at, torch.inf) for entry in entries]
        self._keys.append(keys)
        self._rows.append(torch.tensor(rows, dtype=torch.int64))
        self._published_at.append(torch.tensor(published, dtype=torch.float64))
        self._expires_at.append(torch.tensor(expires, dtype=torch.float64))
        self._entries += tuple(entries)
        self._chunks_of.update(entry.document_id for entry in entries)
        self._num_bytes += sum(entry.stored.num_bytes for entry in entries)
        self._next_row += len(entries)

    def publish(self, version: int) -> BankView:
        """Make what is here the next view."""
        self.view = BankView(
            namespace=self.view.namespace,
            version=version,
            entries=self._entries,
            selection_keys=self._keys.rows,
            rows=self._rows.rows,
            published_at=self._published_at.rows,
            expires_at=self._expires_at.rows,
            num_documents=len(self._chunks_of),
            num_bytes=self._num_bytes,
        )
        return self.view


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
