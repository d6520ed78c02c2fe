"""The memory bank: what the engine reads. One immutable view and one index for each namespace.

A view of the store, not the truth: whoever calls `apply` has already made the write durable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mac_core.config import SelectionConfig
from mac_core.memory.index import best_rows, exact_cosines
from mac_core.memory.records import DocumentRecord, last_of_each_id, metadata_matches
from mac_core.memory.views import BankEntry, BankView, Shelf, empty_view, entries_of
from mac_core.types import MetadataValue

if TYPE_CHECKING:
    from mac_core.networks.aggregation import AggregationKeys

__all__ = ["BankEntry", "BankView", "MemoryBank", "Selected", "SelectionMode"]

SelectionMode = Literal["fused", "bm25"]
# A matrix product may round equal rows differently: this is above that and below any meaning.
TIE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """A chunk chosen for one question."""

    entry: BankEntry
    score: float  # what it was ranked by: see `SelectionConfig`; mode bm25: bm25_scale * BM25
    log_prior: float  # log-softmax of the scores of all that were chosen with it
    cosine: float  # of question and chunk; 0 in mode bm25, which reads no query
    late: float = 0.0  # late interaction of question and chunk; 0 where it was not asked for


class MemoryBank:
    """All namespaces, each with its own view and index: isolated by construction.

    `view` and `namespaces` from any thread; everything else from the engine thread only.
    """

    def __init__(self, selection: SelectionConfig, *, device: str = "cpu") -> None:
        """`device` holds the selection keys; everything else stays on the CPU."""
        self._selection = selection
        self._device = device
        self._shelves: dict[str, Shelf] = {}

    def with_selection(self, selection: SelectionConfig) -> MemoryBank:
        """The same shelves, selected from by other settings; only one of the two may write."""
        other = MemoryBank(selection, device=self._device)
        other._shelves = self._shelves
        return other

    def view(self, namespace: str) -> BankView:
        """The latest published view; empty, at version 0, for a namespace never written."""
        shelf = self._shelves.get(namespace)
        if shelf is not None:
            return shelf.view
        return empty_view(namespace, d_key=self._selection.d_key, device=self._device)

    def namespaces(self) -> tuple[str, ...]:
        return tuple(self._shelves)

    def apply(
        self,
        namespace: str,
        version: int,
        removed_ids: Sequence[str],
        records: Sequence[DocumentRecord],
        aggregation_keys: Sequence[Sequence[AggregationKeys | None]] | None = None,
    ) -> BankView:
        """Publish the next view: without `removed_ids`, with `records` at the end.

        Documents with the ids of `records` are replaced. What remains is exactly the bank that
        never held the removed documents.

        Args:
            version: the store's, after the same write.
            aggregation_keys: by record, by chunk; None: no chunk has any.

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
            namespace, d_key=self._selection.d_key, device=self._device
        )
        keys = shelf.stack_keys(added)
        shelf.remove({*removed_ids, *made})
        shelf.append(added, keys)
        self._shelves[namespace] = shelf
        return shelf.publish(version)

    def drop(self, namespace: str) -> None:
        """Forget a namespace; views already taken stay readable."""
        self._shelves.pop(namespace, None)

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
        cosines = (queries @ view.selection_keys.T).cpu()  # (batch, bank_size)
        selected = []
        for query, near, text in zip(queries, cosines, texts, strict=True):
            bm25 = self._bm25(view, text)
            rows = self._candidates(near, bm25, eligible, top_k=top_k, mode=mode)
            exact = torch.zeros(len(rows))
            if mode == "fused":
                keys = view.selection_keys[rows.to(self._device)]
                exact = exact_cosines(keys, query).cpu()
            scores = self._selection.bm25_scale * bm25[rows] + self._selection.dense_scale * exact
            rank = bm25[rows] if mode == "bm25" else scores
            selected.append(_best(view, rows, scores, rank, exact, top_k=top_k))
        return selected

    def _candidates(
        self, cosines: Tensor, bm25: Tensor, eligible: Tensor, *, top_k: int, mode: SelectionMode
    ) -> Tensor:
        """Rows that are ranked, ascending."""
        if top_k == 0:
            return eligible.nonzero()[:, 0]
        limit = max(top_k, self._selection.num_candidates)
        chosen = torch.zeros_like(eligible)
        chosen[best_rows(bm25, eligible & (bm25 > 0), limit=limit)] = True
        if mode == "fused":
            chosen[best_rows(cosines, eligible, limit=limit, slack=TIE)] = True
        return chosen.nonzero()[:, 0]

    def _bm25(self, view: BankView, text: str) -> Tensor:
        """BM25 of every entry, `(bank_size,)` float32, 0 where no word is shared."""
        scores = torch.zeros(len(view.entries))
        shelf = self._shelves.get(view.namespace)
        hits = shelf.index.search(text) if shelf is not None else []
        if not hits:
            return scores
        found = torch.tensor([row for row, _ in hits], dtype=torch.int64)
        values = torch.tensor([score for _, score in hits])
        places = torch.searchsorted(view.rows, found).clamp(max=len(view.rows) - 1)
        # The index may be newer than the view: what the view does not hold is left out.
        known = view.rows[places] == found
        scores[places[known]] = values[known]
        return scores


def _eligible(
    view: BankView, *, filter: Mapping[str, MetadataValue], as_of: float | None, now: float
) -> Tensor:
    """bool `(bank_size,)`."""
    eligible = view.expires_at > now
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
