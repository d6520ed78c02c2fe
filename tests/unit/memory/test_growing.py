"""What readers were given stays as it was, whatever is appended, kept or filled later."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mac_core.memory.growing import GrowingList, GrowingTensor


@given(parts=st.lists(st.lists(st.integers(), max_size=4), max_size=8))
def test_every_prefix_is_the_tuple_that_it_stands_for(parts: list[list[int]]) -> None:
    growing, expected, given_items = GrowingList[int](), (), []
    for part in parts:
        growing.append(part)
        expected = (*expected, *part)
        given_items.append((growing.items, expected))
    for items, wanted in given_items:
        assert tuple(items) == wanted
        assert items == wanted
        assert (len(items), items[:2], items[::-1]) == (len(wanted), wanted[:2], wanted[::-1])


def test_a_prefix_ends_where_it_was_taken() -> None:
    growing = GrowingList[str]()
    growing.append(["a", "b"])
    items = growing.items
    growing.append(["c"])
    assert (items[0], items[-1]) == ("a", "b")
    with pytest.raises(IndexError, match="2 is not in"):
        items[2]
    assert items != ("a", "b", "c")
    assert items != 7


def test_keeping_and_filling_leave_what_was_given() -> None:
    growing = GrowingList[str]()
    growing.append(["a", "b", "c"])
    before = growing.items
    growing.fill([1], "-")
    filled = growing.items
    growing.keep([0, 1])
    growing.append(["d"])
    assert [tuple(items) for items in (before, filled, growing.items)] == [
        ("a", "b", "c"), ("a", "-", "c"), ("a", "-", "d"),
    ]  # fmt: skip


def test_filling_rows_leaves_what_was_given() -> None:
    growing = GrowingTensor(torch.empty(0, dtype=torch.bool))
    growing.append(torch.ones(3, dtype=torch.bool))
    before = growing.rows
    growing.fill(torch.tensor([1]), False)
    growing.append(torch.ones(1, dtype=torch.bool))
    assert before.tolist() == [True, True, True]
    assert growing.rows.tolist() == [True, False, True, True]
