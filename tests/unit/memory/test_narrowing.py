"""Integers come back exactly, whatever they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mac_core.memory.narrowing import cumulate, narrow_ids, narrow_places, offset_steps

PLACES = st.integers(0, 2**20)


@given(st.lists(st.tuples(PLACES, PLACES)))
def test_any_ranges_come_back(ranges: list[tuple[int, int]]) -> None:
    offsets = torch.tensor(ranges, dtype=torch.int64).reshape(-1, 2)
    assert torch.equal(cumulate(offset_steps(offsets)), offsets)


def test_the_ranges_of_ordinary_text_take_two_bytes_a_token() -> None:
    offsets = torch.tensor([[0, 3], [4, 9], [9, 10], [1000, 1004]])
    assert offset_steps(offsets[:3]).dtype == torch.int8
    assert offset_steps(offsets).dtype == torch.int16


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, torch.uint16), (65_535, torch.uint16), (65_536, torch.int32)]
)
def test_token_ids_take_two_bytes_where_the_vocabulary_allows(
    largest: int, dtype: torch.dtype
) -> None:
    narrowed = narrow_ids(torch.tensor([0, largest]))
    assert narrowed.dtype == dtype
    assert narrowed.long().tolist() == [0, largest]


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, torch.uint8), (256, torch.uint16), (70_000, torch.int32)]
)
def test_places_take_what_they_need(largest: int, dtype: torch.dtype) -> None:
    narrowed = narrow_places(torch.tensor([largest, 0]))
    assert narrowed.dtype == dtype
    assert narrowed.long().tolist() == [largest, 0]


def test_no_token_has_no_ranges() -> None:
    assert cumulate(offset_steps(torch.empty(0, 2, dtype=torch.int64))).shape == (0, 2)
