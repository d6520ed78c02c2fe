"""The queue of past documents: what it keeps, what leaves, and what it gives back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mac_core.networks.values import DocumentEncoding
from mac_core.training.past import PastDocuments

WIDTH, KEYS = 4, 3
NONE = torch.tensor([], dtype=torch.int64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def documents(lengths: list[int], *, seed: int = 0) -> tuple[DocumentEncoding, Tensor, Tensor]:
    """Encoded documents, their ids (document, token) and what of them is content."""
    tokens = max(lengths)
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    slots = normal(len(lengths), tokens, WIDTH, seed=seed)
    encoded = DocumentEncoding(
        slots=slots,
        slot_mask=mask,
        selection_key=normal(len(lengths), KEYS, seed=seed + 1),
        states=slots,
    )
    ids = 10 * torch.arange(1, len(lengths) + 1)[:, None] + torch.arange(tokens)
    content = mask & (torch.arange(tokens) > 0)
    return encoded, ids, content


def pushed(
    past: PastDocuments, paragraphs: list[int], *, lengths: list[int] | None = None, seed: int = 0
) -> DocumentEncoding:
    encoded, ids, content = documents(lengths or [2] * len(paragraphs), seed=seed)
    past.push(encoded, ids=ids, content=content, paragraphs=torch.tensor(paragraphs))
    return encoded


def listed(keys: Tensor) -> list[list[float]]:
    """Keys in an order of their own: where in the queue a document lies says nothing."""
    return sorted(keys.tolist())


def kept(past: PastDocuments) -> list[list[float]]:
    return listed(past.keys(without=NONE)[0])


def test_new_queue_is_empty() -> None:
    keys, places = PastDocuments(3).keys(without=NONE)
    assert len(PastDocuments(3)) == len(keys) == len(places) == 0


def test_capacity_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity=-1 is below 0"):
        PastDocuments(-1)


def test_queue_of_no_capacity_keeps_nothing() -> None:
    past = PastDocuments(0)
    pushed(past, [5, 6])
    assert len(past) == 0


def test_oldest_leave_first() -> None:
    past = PastDocuments(3)
    first = pushed(past, [1, 2])
    second = pushed(past, [3, 4], seed=7)
    assert len(past) == 3
    assert kept(past) == listed(torch.cat([first.selection_key[1:], second.selection_key]))
    third = pushed(past, [5], seed=9)
    assert kept(past) == listed(torch.cat([second.selection_key, third.selection_key]))


def test_paragraph_that_comes_again_is_renewed_and_becomes_the_newest() -> None:
    past = PastDocuments(8)
    first = pushed(past, [1, 2])
    again = pushed(past, [1], seed=7)
    assert kept(past) == listed(torch.stack([first.selection_key[1], again.selection_key[0]]))


def test_keys_leave_out_the_given_paragraphs_alone() -> None:
    past = PastDocuments(8)
    encoded = pushed(past, [1, 2, 3, 4])
    keys, places = past.keys(without=torch.tensor([4, 2, 9]))
    assert places.tolist() == [0, 2]
    assert torch.equal(keys, encoded.selection_key[[0, 2]])


def test_keys_without_all_paragraphs_are_none() -> None:
    past = PastDocuments(8)
    pushed(past, [1, 2])
    keys, places = past.keys(without=torch.tensor([1, 2]))
    assert len(keys) == len(places) == 0


def test_entries_come_back_right_padded_in_the_order_asked_for() -> None:
    past = PastDocuments(8)
    encoded = pushed(past, [1, 2, 3], lengths=[2, 3, 1])
    ids, content, slots, mask = past.take(torch.tensor([2, 0]))
    assert ids.tolist() == [[30, 0], [10, 11]]
    assert content.tolist() == [[False, False], [False, True]]
    assert mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(slots[mask], encoded.slots[[2, 0, 0], [0, 0, 1]].to(torch.bfloat16))


def test_longer_documents_than_before_are_kept_whole() -> None:
    past = PastDocuments(8)
    pushed(past, [1], lengths=[1])
    encoded = pushed(past, [2], lengths=[3], seed=7)
    ids, _, slots, mask = past.take(torch.tensor([1, 0]))
    assert ids.tolist() == [[10, 11, 12], [10, 0, 0]]
    assert mask.sum(1).tolist() == [3, 1]
    assert torch.equal(slots[0], encoded.slots[0].to(torch.bfloat16))


def test_shorter_document_in_a_longer_ones_row_brings_nothing_of_it() -> None:
    past = PastDocuments(1)
    pushed(past, [1], lengths=[3])
    pushed(past, [2], lengths=[1], seed=7)
    ids, content, slots, mask = past.take(torch.tensor([0]))
    assert (ids.tolist(), content.tolist(), mask.tolist()) == ([[10]], [[False]], [[True]])
    assert slots.shape == (1, 1, WIDTH)


def test_batch_larger_than_the_queue_leaves_its_last() -> None:
    past = PastDocuments(2)
    encoded = pushed(past, [1, 2, 3])
    assert kept(past) == listed(encoded.selection_key[1:])


def test_nothing_is_taken_from_an_empty_queue() -> None:
    with pytest.raises(IndexError, match="an empty queue"):
        PastDocuments(2).take(torch.tensor([0]))


def test_entries_are_copies_without_gradient() -> None:
    past = PastDocuments(8)
    encoded, ids, content = documents([2])
    slots, key = encoded.slots.clone(), encoded.selection_key.clone()
    encoded.slots.requires_grad_()
    past.push(encoded, ids=ids, content=content, paragraphs=torch.tensor([1]))
    with torch.no_grad():
        encoded.slots.fill_(9.0)
        encoded.selection_key.fill_(9.0)
        ids.fill_(9)
    kept_ids, _, kept_slots, _ = past.take(torch.tensor([0]))
    assert kept_ids.tolist() == [[10, 11]]
    assert torch.equal(kept_slots, slots.to(torch.bfloat16))
    assert torch.equal(past.keys(without=NONE)[0], key)
    assert not kept_slots.requires_grad
