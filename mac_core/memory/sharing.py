"""Fewer vectors than slots: which slots of a chunk read the same one. Knows no record.

Every slot stays, so that every token can still be found and copied; only what is stored of it is
shared with others. Each way is a pure function of the chunk: what is deleted leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from mac_core.memory.index import STOP_WORDS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """Slot i is row `slot_vectors[i]` of `vectors`."""

    vectors: Tensor  # (vectors, width), float32
    slot_vectors: Tensor  # (virtual_tokens,), int64

    @property
    def slots(self) -> Tensor:
        return self.vectors[self.slot_vectors]


def average_neighbours(slots: Tensor, *, count: int) -> Shared:
    """Runs of neighbours of about one length become their mean."""
    places = torch.arange(len(slots)) * count // len(slots)
    return _means(slots, places)


def merge_nearest(slots: Tensor, *, count: int) -> Shared:
    """The two nearest clusters become one until `count` are left, wherever they stand in the text.

    Nearest by Ward's criterion (1963): the pair whose union adds the least to the squared
    distances.
    """
    places = torch.arange(len(slots))
    for kept, gone in _unions(slots)[: len(slots) - count]:
        places[places == gone] = kept
    _, numbers = torch.unique(places, return_inverse=True)
    return _means(slots, numbers)


def _unions(slots: Tensor) -> list[tuple[int, int]]:
    """Every union down to one cluster, cheapest first, as the clusters' first slots.

    Pairs that are each other's nearest are united together: under Ward's criterion no other union
    brings anything nearer to one of them, and none is cheaper than those it is made of.
    """
    first = torch.arange(len(slots))  # slot that a cluster is called by
    heights = torch.zeros(len(slots))  # what its own last union cost
    merged = _means(slots, first)
    found: list[tuple[float, int, int]] = []
    while (left := len(merged.vectors)) > 1:
        costs = _ward(merged.vectors, torch.bincount(merged.slot_vectors).float())
        nearest, numbers = costs.argmin(1), torch.arange(left)
        pairs = ((nearest[nearest] == numbers) & (numbers < nearest)).nonzero()[:, 0]
        others = nearest[pairs]
        # Rounding must not make a union cheaper than those that it is made of.
        heights[pairs] = costs[pairs, others].maximum(heights[pairs]).maximum(heights[others])
        found += zip(
            heights[pairs].tolist(), first[pairs].tolist(), first[others].tolist(), strict=True
        )
        numbers[others] = pairs
        kept, renumbered = torch.unique(numbers, return_inverse=True)
        first, heights = first[kept], heights[kept]
        merged = _means(slots, renumbered[merged.slot_vectors])
    # Sorting is stable: of equal unions, those that others are made of stay first.
    return [(kept, gone) for _, kept, gone in sorted(found, key=itemgetter(0))]


def prune_at_random(slots: Tensor, *, count: int, seed: int) -> Shared:
    """Keep `count` slots drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return _kept(slots, torch.randperm(len(slots), generator=generator)[:count])


def prune_untelling(slots: Tensor, *, count: int, words: Sequence[str]) -> Shared:
    """Keep `count` slots, evenly among those of telling words; then of the others.

    Args:
        words: of each slot, what its token spells; empty for framing.
    """
    telling = [place for place, word in enumerate(words) if is_telling(word)]
    rest = [place for place, word in enumerate(words) if not is_telling(word)]
    chosen = _evenly(telling, count)
    return _kept(slots, torch.tensor(chosen + _evenly(rest, count - len(chosen))))


def is_telling(word: str) -> bool:
    """Whether a question may ask for it: neither a stop word nor a mark, nor framing."""
    return any(char.isalnum() for char in word) and word.lower() not in STOP_WORDS


def _evenly(places: Sequence[int], count: int) -> list[int]:
    """`count` of the places, spread over them; all where there are no more."""
    count = min(count, len(places))
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]


def _kept(slots: Tensor, places: Tensor) -> Shared:
    """The slots at `places`; each other one reads the nearest of them, the earlier of two."""
    kept = places.sort().values
    distances = (torch.arange(len(slots))[:, None] - kept).abs()  # (virtual_tokens, kept)
    return Shared(vectors=slots[kept].clone(), slot_vectors=distances.argmin(1))


def _means(slots: Tensor, places: Tensor) -> Shared:
    """`places` from 0 without gaps: each place's vector is the mean of its slots."""
    counts = torch.bincount(places).float()
    totals = torch.zeros(len(counts), slots.shape[1]).index_add_(0, places, slots)
    return Shared(vectors=totals / counts[:, None], slot_vectors=places)


def _ward(centers: Tensor, sizes: Tensor) -> Tensor:
    """What each union adds to the squared distances: `(clusters, clusters)`, inf to itself."""
    weights = sizes[:, None] * sizes / (sizes[:, None] + sizes)
    costs = weights * torch.cdist(centers, centers).square()
    # Exactly symmetric, so that the least of all is always of a pair that agrees.
    return ((costs + costs.T) / 2).fill_diagonal_(torch.inf)
