"""Fewer vectors: how many stay, which slots share one, and what each way prefers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mac_core.memory.sharing import (
    Shared,
    average_neighbours,
    is_telling,
    merge_nearest,
    prune_at_random,
    prune_untelling,
)

Way = Callable[..., Shared]
WORDS = ["", "The", "river", "Elbe", "rises", ",", "in", "1998", "##s", ""]


def words(count: int) -> list[str]:
    return (WORDS * (count // len(WORDS) + 1))[:count]


def untelling(slots: Tensor, *, count: int) -> Shared:
    return prune_untelling(slots, count=count, words=words(len(slots)))


WAYS = [average_neighbours, merge_nearest, partial(prune_at_random, seed=1), untelling]


def drawn(rows: int, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_so_many_vectors_stay_and_every_slot_reads_one(
    way: Way, rows: int, share: float, seed: int
) -> None:
    count = max(1, round(rows * share))
    shared = way(drawn(rows, seed=seed), count=count)
    assert shared.vectors.shape == (count, 6)
    assert shared.slots.shape == (rows, 6)
    assert set(shared.slot_vectors.tolist()) == set(range(count))


@pytest.mark.parametrize("way", WAYS)
def test_as_many_vectors_as_slots_are_the_slots(way: Way) -> None:
    slots = drawn(13)
    assert torch.equal(way(slots, count=13).slots, slots)


def test_averages_are_of_neighbours() -> None:
    slots = drawn(6)
    shared = average_neighbours(slots, count=2)
    torch.testing.assert_close(shared.vectors, torch.stack([slots[:3].mean(0), slots[3:].mean(0)]))
    assert shared.slot_vectors.tolist() == [0, 0, 0, 1, 1, 1]


def test_merging_finds_those_that_belong_together_wherever_they_stand() -> None:
    centers = drawn(3) * 10
    places = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    shared = merge_nearest(centers[places] + 0.01 * drawn(8, seed=1), count=3)
    together = shared.slot_vectors[:, None] == shared.slot_vectors
    assert torch.equal(together, places[:, None] == places)
    torch.testing.assert_close(shared.slots, centers[places], rtol=0, atol=0.05)


def test_merging_loses_less_than_averaging_neighbours() -> None:
    slots = drawn(60, seed=5)
    merged, averaged = (f(slots, count=15).slots for f in (merge_nearest, average_neighbours))
    assert float((merged - slots).norm()) < float((averaged - slots).norm())


def test_equal_slots_merge_and_cost_nothing() -> None:
    slots = drawn(4).repeat(5, 1)
    torch.testing.assert_close(merge_nearest(slots, count=4).slots, slots)


def test_any_number_of_vectors_of_equal_slots_is_so_many() -> None:
    slots = (100 + drawn(3)).repeat(12, 1)  # far from zero: distances of zero are rounded
    sizes = [len(merge_nearest(slots, count=count).vectors) for count in range(1, 37)]
    assert sizes == list(range(1, 37))


def written_out_ward(slots: Tensor, *, count: int) -> set[frozenset[int]]:
    """One union at a time, every pair looked at."""
    clusters = [frozenset([i]) for i in range(len(slots))]

    def cost(left: frozenset[int], right: frozenset[int]) -> float:
        apart = slots[sorted(left)].double().mean(0) - slots[sorted(right)].double().mean(0)
        return float(apart.square().sum()) * len(left) * len(right) / (len(left) + len(right))

    while len(clusters) > count:
        pair = min(combinations(clusters, 2), key=lambda two: cost(*two))
        clusters = [c for c in clusters if c not in pair] + [pair[0] | pair[1]]
    return set(clusters)


@pytest.mark.parametrize("count", [1, 4, 9, 19])
def test_merging_is_ward_written_out(count: int) -> None:
    slots = drawn(20, seed=7)
    found = merge_nearest(slots, count=count).slot_vectors
    groups = {frozenset((found == i).nonzero()[:, 0].tolist()) for i in range(count)}
    assert groups == written_out_ward(slots, count=count)


def test_pruned_slots_read_the_nearest_that_was_kept() -> None:
    slots = drawn(10)
    shared = untelling(slots, count=1)
    (kept,) = [i for i in range(10) if torch.equal(slots[i], shared.vectors[0])]
    assert is_telling(WORDS[kept])
    assert torch.equal(shared.slots, slots[kept].expand(10, -1))


def test_telling_words_are_kept_before_the_rest() -> None:
    slots = drawn(10)
    shared = untelling(slots, count=5)
    own = [i for i in range(10) if torch.equal(shared.slots[i], slots[i])]
    assert own == [i for i in range(10) if is_telling(WORDS[i])] == [2, 3, 4, 7, 8]
    # "The" before "river", "," after "rises", framing at the ends.
    vectors = shared.slot_vectors.tolist()
    assert vectors[0] == vectors[1] == vectors[2]
    assert vectors[9] == vectors[8]


def test_chance_keeps_the_same_slots_for_the_same_seed() -> None:
    slots = drawn(30)
    one, same, other = (
        prune_at_random(slots, count=8, seed=seed).slot_vectors for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("Elbe", True), ("the", False), ("The", False), (",", False), ("", False), ("7", True)],
)
def test_a_word_tells_something_or_not(word: str, expected: bool) -> None:
    assert is_telling(word) is expected
