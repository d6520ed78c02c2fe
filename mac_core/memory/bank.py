"""The memory bank: what the engine reads. One immutable view and one index for each namespace.

A view of the store, not the truth: whoever calls `apply` has already made the write durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mac_core.config import SelectionConfig
from mac_core.memory.dense_index import DenseIndex, nearest, union
from mac_core.memory.index import exact_cosines
from mac_core.memory.lexical import Words
from mac_core.memory.records import DocumentRecord, last_of_each_id, metadata_matches
from mac_core.memory.tiers import TieredModulation, Tiers
from mac_core.memory.views import (
    LAZY_CHUNKS,
    BankEntry,
    BankView,
    Shelf,
    empty_view,
    entries_of,
)
from mac_core.types import MetadataValue

if TYPE_CHECKING:
    from mac_core.networks.aggregation import AggregationKeys

__all__ = ["BankEntry", "BankView", "MemoryBank", "Selected", "SelectionMode"]

SelectionMode = Literal["fused", "bm25"]
MakeIndex = Callable[[str], DenseIndex | None]  # of a namespace; None: look at every key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """A chunk chosen for one question."""

    entry: BankEntry
    score: float  # what it was ranked by: see `SelectionConfig`; mode bm25: bm25_scale * BM25
    log_prior: float  # log-softmax of the scores of all that were chosen with it
    cosine: float  # of question and chunk; 0 in mode bm25, which reads no query
    late: float = 0.0  # late interaction of question and chunk; 0 where it was not asked for
    first: float | None = None  # score before late interaction was added; None: it was not

    @property
    def first_score(self) -> float:
        """Of the first stage, by cosine and BM25 alone."""
        return self.score if self.first is None else self.first


class MemoryBank:
    """All namespaces, each with its own view and index: isolated by construction.

    `view`, `version` and `namespaces` from any thread; everything else from the engine thread only.
    """

    def __init__(
        self,
        selection: SelectionConfig,
        *,
        device: str = "cpu",
        make_index: MakeIndex = lambda namespace: None,
        lazy_chunks: int = LAZY_CHUNKS,
        tiers: Tiers | None = None,
    ) -> None:
        """
        Args:
            device: holds the selection keys; everything else stays on the CPU.
            make_index: what proposes candidates in a namespace.
            lazy_chunks: in a larger bank what is removed is hidden first and taken out later.
            tiers: where modulations live; None: all in RAM.
        """
        self._selection = selection
        self._device = device
        self._make_index = make_index
        self._lazy_chunks = lazy_chunks
        self._tiers = tiers
        self._shelves: dict[str, Shelf] = {}
        self._indexes: dict[str, DenseIndex | None] = {}
        self._emptied: dict[str, BankView] = {}  # when last emptied; a shelf's view comes first

    def with_selection(self, selection: SelectionConfig) -> MemoryBank:
        """The same shelves, selected from by other settings; only one of the two may write."""
        other = MemoryBank(selection, device=self._device, tiers=self._tiers)
        other._shelves, other._indexes = self._shelves, self._indexes
        other._emptied = self._emptied
        return other

    def view(self, namespace: str) -> BankView:
        """The latest published view; empty, at version 0, for a namespace never written."""
        return self._published(namespace) or empty_view(
            namespace, d_key=self._selection.d_key, device=self._device
        )

    def version(self, namespace: str) -> int:
        """Of the latest published view; 0 for a namespace never written."""
        view = self._published(namespace)
        return 0 if view is None else view.version

    def _published(self, namespace: str) -> BankView | None:
        shelf = self._shelves.get(namespace)
        return self._emptied.get(namespace) if shelf is None else shelf.view

    def namespaces(self) -> tuple[str, ...]:
        """Those ever written, also where nothing is left."""
        return tuple(dict.fromkeys((*self._shelves, *self._emptied)))

    def apply(
        self,
        namespace: str,
        version: int,
        removed_ids: Sequence[str],
        records: Sequence[DocumentRecord],
        aggregation_keys: Sequence[Sequence[AggregationKeys | None]] | None = None,
        *,
        is_part: bool = False,
    ) -> BankView:
        """Publish the next view: without `removed_ids`, with `records` at the end.

        Documents with the ids of `records` are replaced. What remains is exactly the bank that
        never held the removed documents.

        Args:
            version: the store's, after the same write.
            aggregation_keys: by record, by chunk; None: no chunk has any.
            is_part: the rest of the same version follows; the index waits for it.

        Raises:
            ValueError: keys and records do not belong together; nothing was changed.
        """
        if aggregation_keys is None:
            aggregation_keys = [[None] * len(record.chunks) for record in records]
        made = {record.id: keys for record, keys in zip(records, aggregation_keys, strict=True)}
        added = [
            entry
            for record in last_of_each_id(records)
            for entry in entries_of(record, made[record.id])
        ]
        shelf = self._shelves.get(namespace) or Shelf(
            namespace,
            d_key=self._selection.d_key,
            device=self._device,
            lazy_chunks=self._lazy_chunks,
        )
        keys = shelf.stack_keys(added)
        shelf.remove({*removed_ids, *made})
        shelf.append([self._sheltered(entry) for entry in added], keys)
        view = shelf.publish(version)
        if namespace not in self._shelves:  # only now: whoever looks sees no version before it
            self._indexes[namespace] = self._make_index(namespace)
            self._shelves[namespace] = shelf
        if not view.num_documents and not is_part:
            return self._release(namespace, version)
        index = self._indexes[namespace]
        if index is not None and not is_part:
            index.follow(view)
        return view

    def entries_of(self, namespace: str, document_id: str) -> list[BankEntry]:
        """A document's chunks in order; none when it is not there."""
        shelf = self._shelves.get(namespace)
        return [] if shelf is None else shelf.entries_of(document_id)

    def _release(self, namespace: str, version: int) -> BankView:
        """Keep of a namespace without documents its version alone; older views stay readable."""
        empty = empty_view(namespace, d_key=self._selection.d_key, device=self._device)
        view = self._emptied[namespace] = replace(empty, version=version)
        self._shelves.pop(namespace).close()
        index = self._indexes.pop(namespace)
        if index is not None:
            index.close()
        return view

    def _sheltered(self, entry: BankEntry) -> BankEntry:
        """The entry with its modulation in the tiers; what is cached beside it would fill RAM."""
        if self._tiers is None or isinstance(entry.stored, TieredModulation):
            return entry
        keys = entry.aggregation_keys
        return replace(
            entry,
            stored=self._tiers.shelter(entry.stored),
            aggregation_keys=None if keys is None or keys.tensors else keys,
        )

    @property
    def tier_bytes(self) -> dict[str, int]:
        """Selection keys on the device, modulations in RAM and on disk. Any thread."""
        views = [self.view(name) for name in self.namespaces()]
        held = sum(view.num_bytes for view in views)
        return {
            "device": sum(view.selection_keys.nbytes for view in views),
            "ram": held if self._tiers is None else self._tiers.ram_bytes,
            "disk": 0 if self._tiers is None else self._tiers.disk_bytes,
        }

    def close(self) -> None:
        """Let the indexes keep what helps the next start. The bank stays readable."""
        for index in self._indexes.values():
            if index is not None:
                index.close()

    def select(
        self,
        view: BankView,
        *,
        query: Tensor,
        text: str,
        top_k: int,
        filter: Mapping[str, MetadataValue],
        as_of: float | None,
        now: float,
        mode: SelectionMode = "fused",
    ) -> list[Selected]:
        """The chunks that one question reads, best first; `query` is `(d_key,)`.

        The arguments are those of `select_batch`.
        """
        (selected,) = self.select_batch(
            view,
            queries=query[None],
            texts=[text],
            top_k=top_k,
            filter=filter,
            as_of=as_of,
            now=now,
            mode=mode,
        )
        return selected

    def select_batch(
        self,
        view: BankView,
        *,
        queries: Tensor,
        texts: Sequence[str],
        top_k: int,
        filter: Mapping[str, MetadataValue],
        as_of: float | None,
        now: float,
        mode: SelectionMode = "fused",
    ) -> list[list[Selected]]:
        """One list for each question, as if each had been asked alone.

        Chunks that are expired, published after `as_of` or filtered out take no part. `fused`
        ranks the union of the best candidates of cosine and of BM25; `bm25` what BM25 finds.
        Equal scores stand in order of writing.

        Args:
            queries: `(batch, d_key)`, unit length.
            top_k: how many; 0: every chunk that takes part, scored by the same rule.
            filter: metadata that a chunk's document must have.
            as_of: seconds since the epoch; None: whatever the date of publication.
            now: seconds since the epoch.
        """
        eligible = _eligible(view, filter=filter, as_of=as_of, now=now)
        if not bool(eligible.any()):
            return [[] for _ in texts]
        queries = queries.detach().to(self._device, torch.float32)
        limit = max(top_k, self._selection.num_candidates)
        near: Sequence[Tensor | None] = [None] * len(texts)
        if mode == "fused" and top_k:
            near = nearest(view, queries, eligible, limit=limit, index=self._index_of(view))
        selected = []
        for query, close, text in zip(queries, near, texts, strict=True):
            words = self._words(view, text, eligible, ranks_alone=top_k > 0)
            rows = _candidates(words, close, eligible, limit=limit if top_k else 0)
            bm25 = words.scores(rows)
            exact = torch.zeros(len(rows))
            if mode == "fused":
                keys = view.selection_keys[rows.to(self._device)]
                exact = exact_cosines(keys, query).cpu()
            scores = self._selection.bm25_scale * bm25 + self._selection.dense_scale * exact
            rank = bm25 if mode == "bm25" else scores
            selected.append(_best(view, rows, scores, rank, exact, top_k=top_k))
        return selected

    def _index_of(self, view: BankView) -> DenseIndex | None:
        """The view's index; an index knows the latest view only."""
        shelf = self._shelves.get(view.namespace)
        return self._indexes.get(view.namespace) if shelf and shelf.view is view else None

    def _words(self, view: BankView, text: str, eligible: Tensor, *, ranks_alone: bool) -> Words:
        shelf = self._shelves.get(view.namespace)
        is_whole = shelf is not None and shelf.view is view and eligible is view.alive
        index = None if shelf is None else shelf.index
        return Words(index, view, text, eligible, is_whole=is_whole and ranks_alone)


def _candidates(words: Words, near: Tensor | None, eligible: Tensor, *, limit: int) -> Tensor:
    """Rows that are ranked, ascending; `limit` 0: whatever is eligible."""
    if limit == 0:
        return eligible.nonzero()[:, 0]
    best = words.best(limit=limit)
    return best if near is None else union(best, near)


def _eligible(
    view: BankView, *, filter: Mapping[str, MetadataValue], as_of: float | None, now: float
) -> Tensor:
    """bool `(bank_size,)`; the view's own `alive` when nothing more is asked of a chunk."""
    if not filter and as_of is None and now < view.next_expiry:
        return view.alive
    eligible = view.alive & (view.expires_at > now)
    if as_of is not None:
        eligible &= view.published_at <= as_of
    if filter:
        matching = [metadata_matches(entry.metadata, filter) for entry in view.entries]
        eligible &= torch.tensor(matching, dtype=torch.bool)
    return eligible


def _best(
    view: BankView, rows: Tensor, scores: Tensor, rank: Tensor, cosines: Tensor, *, top_k: int
) -> list[Selected]:
    """The `top_k` entries (0: all) among `rows` by `rank`, best first."""
    order = rank.sort(descending=True, stable=True).indices
    kept = order[:top_k] if top_k else order
    priors = scores[kept].log_softmax(dim=0)
    return [
        Selected(entry=view.entries[row], score=score, log_prior=prior, cosine=cosine)
        for row, score, prior, cosine in zip(
            rows[kept].tolist(),
            scores[kept].tolist(),
            priors.tolist(),
            cosines[kept].tolist(),
            strict=True,
        )
    ]
