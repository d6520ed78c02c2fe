"""One namespace's bank: its immutable views, and the shelf that publishes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mac_core.memory.growing import GrowingList, GrowingTensor
from mac_core.memory.index import Bm25Index
from mac_core.memory.quantization import SlotEncoding
from mac_core.memory.records import DocumentRecord, StoredModulation
from mac_core.memory.tiers import TieredModulation
from mac_core.types import MetadataValue

if TYPE_CHECKING:
    from mac_core.networks.aggregation import AggregationKeys

# Below so many chunks what is removed is taken out at once. Above, that would copy gigabytes for
# one document: it is hidden, and taken out with others when they are one in `1 / HIDDEN_SHARE`.
LAZY_CHUNKS = 10_000
HIDDEN_SHARE = 1 / 16


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
    stored: StoredModulation | TieredModulation
    aggregation_keys: AggregationKeys | None
    pinned: bool = False  # its document is never removed to make room


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankView:
    """One namespace's bank at one version; never changes, safe to read from any thread.

    In a large bank some places can be hidden: `alive` is false there and the entry is `GONE`.
    """

    namespace: str
    version: int
    entries: Sequence[BankEntry]  # (bank_size,), order of writing; an update moves to the end
    selection_keys: Tensor  # (bank_size, d_key), float32, unit length
    rows: Tensor  # (bank_size,), int64, ascending: what the BM25 index calls the entries
    published_at: Tensor  # (bank_size,), float64, -inf: not known
    expires_at: Tensor  # (bank_size,), float64, inf: never
    alive: Tensor  # (bank_size,), bool: whether the place holds a chunk
    next_expiry: float  # no chunk expires before; seconds since the epoch, inf: none ever
    num_documents: int
    num_chunks: int
    num_bytes: int  # of the quantised modulations
    num_pinned_documents: int = 0
    num_pinned_bytes: int = 0


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
        alive=torch.empty(0, dtype=torch.bool),
        next_expiry=float("inf"),
        num_documents=0,
        num_chunks=0,
        num_bytes=0,
    )


_NOTHING = torch.empty(0, dtype=torch.int8)
GONE = BankEntry(  # what stands at a hidden place
    document_id="",
    chunk=0,
    title=None,
    text="",
    start=0,
    num_tokens=0,
    metadata={},
    published_at=None,
    expires_at=None,
    stored=StoredModulation(
        encoding=SlotEncoding(width=0),
        slots=_NOTHING,
        selection_key=_NOTHING,
        token_ids=_NOTHING,
        token_offsets=_NOTHING,
    ),
    aggregation_keys=None,
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
            pinned=record.pinned,
        )
        for part, keys in zip(record.chunks, aggregation_keys, strict=True)
    ]


class Shelf:
    """The growing side of one namespace's views. Engine thread only; `view` from any.

    Appending costs the new rows only; removing compacts, at once or later, so that the next view
    is that of a bank which never held what was removed.
    """

    def __init__(
        self, namespace: str, *, d_key: int, device: str, lazy_chunks: int = LAZY_CHUNKS
    ) -> None:
        self.index = Bm25Index()
        self.view = empty_view(namespace, d_key=d_key, device=device)
        self._lazy_chunks = lazy_chunks
        self._keys = GrowingTensor(self.view.selection_keys)
        self._rows = GrowingTensor(self.view.rows)
        self._published_at = GrowingTensor(self.view.published_at)
        self._expires_at = GrowingTensor(self.view.expires_at)
        self._alive = GrowingTensor(self.view.alive)
        self._columns = (
            *(self._keys, self._rows, self._published_at, self._expires_at, self._alive),
        )
        self._entries = GrowingList[BankEntry]()
        self._first_row_of: dict[str, int] = {}  # a document's chunks stand together
        self._next_expiry = float("inf")
        self._num_bytes = 0
        self._num_hidden = 0
        self._num_pinned_documents = 0
        self._num_pinned_bytes = 0
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

    def entries_of(self, document_id: str) -> list[BankEntry]:
        """The document's chunks in order; none when it is not there."""
        entries = self._entries.items
        return [entries[place] for place in self._places_of(document_id)]

    def remove(self, ids: Collection[str]) -> None:
        """Take every chunk of the documents `ids` off; unknown ids are no error."""
        places = [place for name in ids for place in self._places_of(name)]
        if not places:
            return
        entries = self._entries.items
        is_first_to_expire = any(entries[place].expires_at == self._next_expiry for place in places)
        for place, row in zip(places, self._rows.rows[places].tolist(), strict=True):
            self.index.remove(row)
            _release(entries[place])
            self._count(entries[place], -1)
        for name in ids:
            self._first_row_of.pop(name, None)
        self._alive.fill(torch.tensor(places), False)
        self._entries.fill(places, GONE)
        self._num_hidden += len(places)
        size = len(self._entries.items)
        if size <= self._lazy_chunks or self._num_hidden > size * HIDDEN_SHARE:
            self._compact()
        if is_first_to_expire:
            expires_at = self._expires_at.rows[self._alive.rows]
            self._next_expiry = float(expires_at.min()) if len(expires_at) else float("inf")

    def close(self) -> None:
        """The bank forgets the namespace; its views stay readable."""
        for entry in self._entries.items:
            _release(entry)

    def _places_of(self, document_id: str) -> range:
        row = self._first_row_of.get(document_id)
        if row is None:
            return range(0)
        entries = self._entries.items
        first = int(np.searchsorted(self._rows.rows.numpy(), row))
        end = first
        while end < len(entries) and entries[end].document_id == document_id:
            end += 1
        return range(first, end)

    def _count(self, entry: BankEntry, sign: int) -> None:
        self._num_bytes += sign * entry.stored.num_bytes
        if entry.pinned:
            self._num_pinned_bytes += sign * entry.stored.num_bytes
            self._num_pinned_documents += sign * (entry.chunk == 0)

    def _compact(self) -> None:
        kept = self._alive.rows.nonzero()[:, 0]
        for column in self._columns:
            column.keep(kept)
        self._entries.keep(kept.tolist())
        self._num_hidden = 0

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
        self._alive.append(torch.ones(len(entries), dtype=torch.bool))
        self._entries.append(entries)
        for row, entry in zip(rows, entries, strict=True):
            self._first_row_of.setdefault(entry.document_id, row)
        self._next_expiry = min([self._next_expiry, *expires])
        for entry in entries:
            self._count(entry, 1)
        self._next_row += len(entries)

    def publish(self, version: int) -> BankView:
        """Make what is here the next view."""
        self.view = BankView(
            namespace=self.view.namespace,
            version=version,
            entries=self._entries.items,
            selection_keys=self._keys.rows,
            rows=self._rows.rows,
            published_at=self._published_at.rows,
            expires_at=self._expires_at.rows,
            alive=self._alive.rows,
            next_expiry=self._next_expiry,
            num_documents=len(self._first_row_of),
            num_chunks=len(self._entries.items) - self._num_hidden,
            num_bytes=self._num_bytes,
            num_pinned_documents=self._num_pinned_documents,
            num_pinned_bytes=self._num_pinned_bytes,
        )
        return self.view


def _release(entry: BankEntry) -> None:
    if isinstance(entry.stored, TieredModulation):
        entry.stored.release()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
