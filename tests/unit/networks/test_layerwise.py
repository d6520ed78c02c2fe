"""Layer-wise modulation: pooling, what a slot holds, and the prefix that it becomes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mac_core.networks.layerwise import LayerwisePrefix, level, mean_unit, pool_positions
from mac_core.networks.values import TargetModulation
from tests.builders import LAYERS, WIDTH, tiny_bert_model

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}  # float32, the same few sums


def sample_states(rows: int, tokens: int, width: int) -> Tensor:
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(8))


def prefix_mask(lengths: list[int], *, tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10])
def test_pooling_averages_real_neighbours(size: int) -> None:
    lengths, tokens = [9, 5, 1], 9
    states, mask = sample_states(3, tokens, 4), prefix_mask([9, 5, 1], tokens=tokens)
    slots, slot_mask = pool_positions(states, mask, size=size)
    assert slots.shape[1] == -(-tokens // size)
    for row, length in enumerate(lengths):
        groups = [states[row, i : min(i + size, length)] for i in range(0, length, size)]
        assert int(slot_mask[row].sum()) == len(groups)
        expected = torch.stack([group.mean(0) for group in groups])
        torch.testing.assert_close(slots[row][slot_mask[row]], expected, **TOLERANCE)


def test_pooled_slots_do_not_depend_on_padding() -> None:
    states, mask = sample_states(1, 7, 4), prefix_mask([5], tokens=7)
    loud = torch.where(mask[..., None], states, 1e6)
    quiet = torch.where(mask[..., None], states, 0.0)
    for left, right in zip(
        pool_positions(loud, mask, size=2), pool_positions(quiet, mask, size=2), strict=True
    ):
        assert torch.equal(left[:, :3], right[:, :3])


def test_mean_unit_is_the_direction_of_the_real_positions() -> None:
    states, mask = sample_states(2, 5, 4), prefix_mask([5, 2], tokens=5)
    expected = torch.stack([states[0].mean(0), states[1, :2].mean(0)])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(mean_unit(states, mask), expected, **TOLERANCE)


@torch.no_grad()
def test_slot_holds_the_states_that_enter_every_layer() -> None:
    model = tiny_bert_model(pool=1)
    ids = torch.tensor([[2, 70, 71, 72, 3]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    encoded = model.encode_documents(ids, mask)
    output = model.amortization.encoder(
        inputs_embeds=model.base_lm.input_embeddings(ids), output_hidden_states=True
    )
    parts = encoded.slots.chunk(LAYERS, dim=-1)
    for part, states in zip(parts, output.hidden_states[:-1], strict=True):
        torch.testing.assert_close(part, states, **TOLERANCE)
    torch.testing.assert_close(encoded.states, output.hidden_states[-1], **TOLERANCE)


@torch.no_grad()
def test_prefix_is_the_lms_own_projection_layer_by_layer() -> None:
    model = tiny_bert_model()
    slots = sample_states(2, 3, LAYERS * WIDTH)
    target = TargetModulation(
        slots=slots, log_bias=torch.zeros(2, 3), document_mass=torch.ones(2, 1)
    )
    prefix = LayerwisePrefix(model.base_lm)(target)
    for layer, block in enumerate(model.base_lm.model.bert.encoder.layer):
        part = slots[..., layer * WIDTH : (layer + 1) * WIDTH]
        value = prefix.values[layer].transpose(1, 2).flatten(2)
        torch.testing.assert_close(value, block.attention.self.value(part), **TOLERANCE)
        key = prefix.keys[layer].transpose(1, 2).flatten(2)
        torch.testing.assert_close(key, block.attention.self.key(part), **TOLERANCE)


def test_words_are_the_base_lms_and_stored_once() -> None:
    model = tiny_bert_model()
    assert [name for name in model.amortization.state_dict() if "word_embeddings" in name] == []
    assert list(LayerwisePrefix(model.base_lm).parameters()) == []


# ---- level


def test_equal_weights_become_no_bias() -> None:
    log_bias = torch.tensor([[-3.0, -3.0, -torch.inf]])
    assert level(log_bias).tolist() == [[0.0, 0.0, -torch.inf]]


def test_levelled_weights_sum_to_the_number_of_slots() -> None:
    log_bias = torch.tensor([[1.0, -2.0, 0.5, -torch.inf], [4.0, 4.0, 3.0, 9.0]])
    assert level(log_bias).exp().sum(1).tolist() == pytest.approx([3.0, 4.0])


def test_level_knows_only_differences() -> None:
    log_bias = torch.tensor([[1.0, -2.0, 0.5]])
    torch.testing.assert_close(level(log_bias + 7.0), level(log_bias), **TOLERANCE)
    torch.testing.assert_close(level(log_bias).diff(), log_bias.diff(), **TOLERANCE)


def test_row_without_slots_stays_without() -> None:
    log_bias = torch.tensor([[-torch.inf, -torch.inf], [0.0, 0.0]])
    assert level(log_bias).tolist() == [[-torch.inf, -torch.inf], [0.0, 0.0]]
