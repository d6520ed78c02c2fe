"""Product quantisation: exact on what it holds, better with more parts, never mixing rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mac_core.memory.codebook import Codebook, train_codebook


@pytest.fixture(scope="module")
def slots() -> Tensor:
    """Rows around twenty centers."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, 24, generator=generator)
    places = torch.randint(0, 20, (600,), generator=generator)
    return centers[places] + 0.1 * torch.randn(600, 24, generator=generator)


def lost(codebook: Codebook, slots: Tensor) -> float:
    return float((codebook.decode(codebook.encode(slots)) - slots).square().mean())


def test_fewer_distinct_rows_than_centroids_come_back() -> None:
    rows = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    codebook = train_codebook(rows, num_parts=3)
    assert (codebook.num_parts, codebook.width) == (3, 12)
    assert lost(codebook, rows) < 1e-6  # float16


def test_a_slot_takes_a_byte_a_part_and_more_parts_lose_less(slots: Tensor) -> None:
    few, many = train_codebook(slots, num_parts=2), train_codebook(slots, num_parts=12)
    assert few.encode(slots).shape == (600, 2)
    assert few.encode(slots).dtype == torch.uint8
    assert lost(many, slots) < lost(few, slots) < float(slots.square().mean()) / 10


def test_training_improves_on_the_rows_it_begins_at(slots: Tensor) -> None:
    drawn = train_codebook(slots, num_parts=4, rounds=0)
    assert lost(train_codebook(slots, num_parts=4), slots) < lost(drawn, slots)


def test_codes_are_the_nearest_centroids(slots: Tensor) -> None:
    codebook = train_codebook(slots, num_parts=4)
    parts = slots.view(len(slots), 4, 6).transpose(0, 1)
    expected = torch.cdist(parts, codebook.centroids.float()).argmin(-1).T
    assert torch.equal(codebook.encode(slots).long(), expected)


def test_the_same_rows_give_the_same_codebook_and_others_another(slots: Tensor) -> None:
    again = train_codebook(slots, num_parts=4)
    assert train_codebook(slots, num_parts=4).id == again.id
    assert train_codebook(slots[:300], num_parts=4).id != again.id


@pytest.mark.parametrize(("rows", "num_parts"), [(0, 4), (600, 5)])
def test_parts_that_do_not_divide_or_no_rows_are_refused(
    slots: Tensor, rows: int, num_parts: int
) -> None:
    with pytest.raises(ValueError, match=f"{num_parts} parts"):
        train_codebook(slots[:rows], num_parts=num_parts)
