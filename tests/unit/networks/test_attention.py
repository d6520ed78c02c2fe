"""Attention over slots: masks, mass, and the online softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mac_core.networks.attention import (
    OnlineSoftmax,
    Shard,
    attend,
    attend_online,
    shard_mass,
    slot_bias,
)
from mac_core.networks.values import BankSlice

BATCH, TOKENS, HEADS, HEAD_DIM, DOCUMENTS, VIRTUAL_TOKENS = 2, 3, 2, 4, 6, 5
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums in another order


def sample(*, rows: int = 1, documents: int = DOCUMENTS) -> tuple[Tensor, Shard]:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, documents, VIRTUAL_TOKENS, HEADS, HEAD_DIM)
    query = torch.randn(BATCH, TOKENS, HEADS, HEAD_DIM, generator=generator)
    shard = Shard(
        key=torch.randn(shape, generator=generator),
        value=torch.randn(shape, generator=generator),
        bias=torch.randn(BATCH, documents, VIRTUAL_TOKENS, generator=generator),
    )
    return query, shard


def written_out(query: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """The definition: one softmax over all slots, for all heads and rows."""
    key = shard.key.expand(BATCH, -1, -1, -1, -1).flatten(1, 2)
    value = shard.value.expand(BATCH, -1, -1, -1, -1).flatten(1, 2)
    scores = torch.einsum("bthd,bkhd->bhtk", query, key) / math.sqrt(HEAD_DIM)
    weights = torch.softmax(scores + shard.bias.flatten(1)[:, None, None], dim=-1)
    mass = weights.unflatten(-1, shard.bias.shape[1:]).sum(-1).mean(1)
    return torch.einsum("bhtk,bkhd->bthd", weights, value), mass


def cut(shard: Shard, sizes: list[int]) -> list[Shard]:
    """The same documents in shards of the given sizes."""
    columns = (shard.key.split(sizes, 1), shard.value.split(sizes, 1), shard.bias.split(sizes, 1))
    return [Shard(key=k, value=v, bias=b) for k, v, b in zip(*columns, strict=True)]


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor) and not item._is_view():
                self.num_elements = max(self.num_elements, item.numel())
        return result


@pytest.mark.parametrize("rows", [1, BATCH], ids=["shared bank", "a bank per row"])
def test_attend_matches_written_out_softmax(rows: int) -> None:
    query, shard = sample(rows=rows)
    for actual, expected in zip(attend(query, shard), written_out(query, shard), strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_excluded_slots_have_no_weight_whatever_they_hold() -> None:
    query, shard = sample()
    bias = shard.bias.clone()
    bias[:, 2, 1:] = -torch.inf
    key, value = shard.key.clone(), shard.value.clone()
    key[:, 2, 1:] = 1e4
    value[:, 2, 1:] = -1e4
    quiet, _ = attend(query, Shard(key=shard.key, value=shard.value, bias=bias))
    changed, _ = attend(query, Shard(key=key, value=value, bias=bias))
    assert torch.equal(quiet, changed)


def test_row_without_slots_gives_zeros_and_finite_gradients() -> None:
    query, shard = sample()
    query.requires_grad_()
    bias = shard.bias.clone()
    bias[0] = -torch.inf
    bias.requires_grad_()
    mixed, mass = attend(query, Shard(key=shard.key, value=shard.value, bias=bias))
    (mixed.sum() + mass.square().sum()).backward()
    assert mixed[0].abs().max() == 0
    torch.testing.assert_close(mass.sum(-1), torch.tensor([[0.0] * TOKENS, [1.0] * TOKENS]))
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [5, 1], [1] * 6], ids=str)
@pytest.mark.parametrize("rows", [1, BATCH], ids=["shared bank", "a bank per row"])
def test_online_softmax_equals_attend_for_any_sharding(sizes: list[int], rows: int) -> None:
    query, shard = sample(rows=rows)
    mixed, mass = attend(query, shard)
    shards = cut(shard, sizes)
    online = attend_online(query, shards)
    parts = [shard_mass(query, part, online.log_normalizer) for part in shards]
    torch.testing.assert_close(online.mixed, mixed, **TOLERANCE)
    torch.testing.assert_close(torch.cat(parts, dim=-1), mass, **TOLERANCE)


def test_online_softmax_survives_shards_without_slots_and_huge_scores() -> None:
    query, shard = sample()
    bias = shard.bias.clone()
    bias[:, :2] = -torch.inf  # the first shard of row 0 and 1 is empty
    bias[0] = -torch.inf  # row 0 has nothing at all
    bias[1, 4] += 300.0  # exp(300) overflows float32: the maximum must be subtracted
    shard = Shard(key=shard.key, value=shard.value, bias=bias)
    online = attend_online(query, cut(shard, [2, 2, 2]))
    torch.testing.assert_close(online.mixed, attend(query, shard)[0], **TOLERANCE)
    assert shard_mass(query, shard, online.log_normalizer)[0].abs().max() == 0


def test_online_softmax_has_the_gradient_of_attend() -> None:
    query, shard = sample()
    query.requires_grad_()
    (expected,) = torch.autograd.grad(attend(query, shard)[0].square().sum(), query)
    online = attend_online(query, cut(shard, [2, 4]))
    (actual,) = torch.autograd.grad(online.mixed.square().sum(), query)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_merge_does_not_depend_on_the_order_of_shards() -> None:
    query, shard = sample()
    parts = [attend_online(query, [part]) for part in cut(shard, [2, 4])]
    forward: OnlineSoftmax = parts[0].merge(parts[1])
    torch.testing.assert_close(forward.mixed, parts[1].merge(parts[0]).mixed, **TOLERANCE)


def test_online_softmax_never_holds_scores_over_the_whole_bank() -> None:
    # Defect 7: scores of every target token over the whole bank at once.
    documents = 64
    query, shard = sample(documents=documents)
    shards = cut(shard, [2] * (documents // 2))
    with LargestTensor() as largest:
        online = attend_online(query, shards)
        for part in shards:
            shard_mass(query, part, online.log_normalizer)
    assert 0 < largest.num_elements < BATCH * TOKENS * documents * VIRTUAL_TOKENS / 8


def test_shared_keys_are_never_copied_per_question() -> None:
    # Defect 6: the bank repeated per row of the batch.
    query, shard = sample(documents=64)
    query = query[:, :1]  # scores stay smaller than the keys, so that a copy would show
    with LargestTensor() as largest:
        attend(query, shard)
    assert largest.num_elements < shard.key.numel()


def test_slot_bias_joins_prior_log_bias_and_mask() -> None:
    bank = BankSlice(
        slots=torch.zeros(1, 2, 2, 1),
        mask=torch.tensor([[[True, False], [True, True]]]),
        log_prior=torch.tensor([[-1.0, -torch.inf]]),
        log_bias=torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]),
    )
    inf = torch.inf
    assert slot_bias(bank).tolist() == [[[-0.5, -inf], [-inf, -inf]]]


def test_attend_online_refuses_no_shards() -> None:
    with pytest.raises(ValueError, match="no shards"):
        attend_online(torch.zeros(1, 1, 1, 1), [])
