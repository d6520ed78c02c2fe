"""Which chunks are nearest to a query. An index only proposes; every score is computed exactly.

Knows no kind of index but the exact search, which is the slow version that the others are
compared with, and what answers where they cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mac_core.memory.index import best_rows, exact_cosines
from mac_core.memory.views import BankView

# A matrix product may round equal rows differently: this is above that and below any meaning.
TIE = 1e-5
SPARE = 16  # proposals beyond the limit, for ties and for what was removed since
MAX_FETCH = 16  # times the limit: an index that must look at more is no quicker than looking at all
GATHERED_SHARE = 1 / 8  # of the bank: so few chunks are gathered rather than masked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """What an index found: by query, the bank's row numbers of chunks, nearest first."""

    rows: Sequence[Tensor]  # each (found,), int64; fewer than fetched: there are no more
    last_row: int  # the index knows of no later row


class DenseIndex(Protocol):
    """A rebuildable view of the selection keys of one namespace. Engine thread only.

    It may propose rows that are gone, and may miss some; it never decides alone.
    """

    @property
    def kind(self) -> str: ...

    @property
    def is_exhaustive(self) -> bool:
        """Whether it misses nothing that is nearer than the last of what it proposes."""
        ...

    def follow(self, view: BankView) -> None:
        """Take note of the bank's next view."""
        ...

    def propose(self, queries: Tensor, *, fetch: int) -> Proposal | None:
        """The nearest rows of each of `queries`, `(batch, d_key)`; None: it is not ready."""
        ...

    def close(self) -> None:
        """Stop what runs beside, and keep for the next start what is worth it."""
        ...


def nearest(
    view: BankView,
    queries: Tensor,
    eligible: Tensor,
    *,
    limit: int,
    index: DenseIndex | None = None,
) -> list[Tensor]:
    """By query, the places of the `limit` nearest eligible chunks and of ties with the last.

    Args:
        queries: `(batch, d_key)`, unit length, where the keys are.
        eligible: bool `(bank_size,)`.
        index: of exactly this view, or None: look at every key.
    """
    num_eligible = int(eligible.sum())
    found: list[Tensor | None] = [None] * len(queries)
    if index is not None and num_eligible * MAX_FETCH >= view.num_chunks:
        found = _by_index(view, queries, eligible, limit=limit, index=index)
    left = [place for place, rows in enumerate(found) if rows is None]
    if left:
        exact = _by_looking(view, queries[left], eligible, limit=limit, count=num_eligible)
        for place, rows in zip(left, exact, strict=True):
            found[place] = rows
    return [rows for rows in found if rows is not None]


def _by_looking(
    view: BankView, queries: Tensor, eligible: Tensor, *, limit: int, count: int
) -> list[Tensor]:
    keys = view.selection_keys
    if count < GATHERED_SHARE * len(keys):
        places = eligible.nonzero()[:, 0]
        cosines = (queries @ keys[places.to(keys.device)].T).cpu()  # (batch, count)
        close = [places[best_rows(row, _all(row), limit=limit, slack=2 * TIE)] for row in cosines]
    else:
        cosines = (queries @ keys.T).cpu()  # (batch, bank_size)
        close = [best_rows(row, eligible, limit=limit, slack=2 * TIE) for row in cosines]
    return [
        _sifted(view, query, places, limit=limit)[0]
        for query, places in zip(queries, close, strict=True)
    ]


def _by_index(
    view: BankView, queries: Tensor, eligible: Tensor, *, limit: int, index: DenseIndex
) -> list[Tensor | None]:
    """None for a query that the index finds too little for."""
    found: list[Tensor | None] = [None] * len(queries)
    left = list(range(len(queries)))
    fetch = limit + SPARE
    while left and fetch <= limit * MAX_FETCH + SPARE:
        proposal = index.propose(queries[left], fetch=fetch)
        if proposal is None:
            return found
        late = _late(view, queries[left], eligible, after=proposal.last_row, limit=limit)
        again = []
        for place, rows, more in zip(left, proposal.rows, late, strict=True):
            query, proposed = queries[place], _places(view, rows, eligible)
            is_everything = index.is_exhaustive and len(rows) < fetch
            if not is_everything and not _suffices(view, query, proposed, limit, index):
                again.append(place)
                continue
            found[place] = _sifted(view, query, union(proposed, more), limit=limit)[0]
        left, fetch = again, 4 * fetch
    return found


def union(left: Tensor, right: Tensor) -> Tensor:
    """What is in either, ascending and once; both on the CPU."""
    return torch.from_numpy(np.union1d(left.numpy(), right.numpy()))


def _suffices(
    view: BankView, query: Tensor, proposed: Tensor, limit: int, index: DenseIndex
) -> bool:
    """Whether nothing that the index left out is among the `limit` nearest, as far as it knows."""
    if len(proposed) < limit:
        return False
    if not index.is_exhaustive:
        return True
    lowest = _sifted(view, query, proposed, limit=limit)[1]
    last = exact_cosines(_keys(view, proposed[-1:]), query)
    return float(last) < lowest - 2 * TIE  # else there may be ties beyond it


def _late(
    view: BankView, queries: Tensor, eligible: Tensor, *, after: int, limit: int
) -> list[Tensor]:
    """The nearest among the rows that the index does not have yet, by looking at each."""
    first = int(torch.searchsorted(view.rows, after, right=True))
    if first == len(view.rows):
        return [torch.empty(0, dtype=torch.int64)] * len(queries)
    cosines = (queries @ view.selection_keys[first:].T).cpu()
    return [first + best_rows(row, eligible[first:], limit=limit, slack=2 * TIE) for row in cosines]


def _places(view: BankView, rows: Tensor, eligible: Tensor) -> Tensor:
    """Where the view holds those of `rows` that are eligible, in their order."""
    places = torch.searchsorted(view.rows, rows).clamp(max=len(view.rows) - 1)
    known = (view.rows[places] == rows) & eligible[places]
    return places[known]


def _sifted(view: BankView, query: Tensor, places: Tensor, *, limit: int) -> tuple[Tensor, float]:
    """Those of `places` that are nearest by the exact cosine, ascending, and the last one's."""
    if len(places) == 0:
        return places, -torch.inf
    cosines = exact_cosines(_keys(view, places), query).cpu()
    lowest = cosines.topk(min(limit, len(places))).values[-1]
    return places[cosines >= lowest].sort().values, float(lowest)


def _keys(view: BankView, places: Tensor) -> Tensor:
    return view.selection_keys[places.to(view.selection_keys.device)]


def _all(row: Tensor) -> Tensor:
    return torch.ones(len(row), dtype=torch.bool)
