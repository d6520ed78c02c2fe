"""Latents: an encoder in two parts is that encoder, and the prefix is made of the best slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from mac_core.networks.latent import LatentAmortization, LatentPrefix
from mac_core.networks.layerwise import level
from mac_core.networks.values import TargetModulation
from tests.builders import LAYERS, LM_KINDS, WIDTH, LMKind, base_lm_config, tiny_base_lm

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, masks written in another way
DEPTH_OF_ALL = 3
ENCODER = base_lm_config("bert", is_decoder=False) | {"num_hidden_layers": DEPTH_OF_ALL}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_encoder() -> Any:
    values = dict(ENCODER)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AutoModel.from_config(config, add_pooling_layer=False).eval()


def split_encoder(whole: Any, *, depth: int) -> LatentAmortization:
    """`whole`'s weights in two parts."""
    network = LatentAmortization(ENCODER, depth=depth).eval()
    state = whole.state_dict()
    network.lower.load_state_dict({key: state[key] for key in network.lower.state_dict()})
    for own, layer in zip(network.upper.layers, whole.encoder.layer[depth:], strict=True):
        own.load_state_dict(layer.state_dict())
    return network


def sample_documents() -> tuple[Tensor, Tensor, Tensor]:
    """Ids that are not read, embeddings and a mask of two documents of unlike lengths."""
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return torch.zeros(2, 6, dtype=torch.int64), 0.3 * normal(2, 6, WIDTH), mask


@torch.no_grad()
def written_out(whole: Any) -> tuple[Tensor, ...]:
    """Hidden states of the whole encoder, from the embeddings on."""
    _, embeddings, mask = sample_documents()
    output = whole(inputs_embeds=embeddings, attention_mask=mask.long(), output_hidden_states=True)
    states: tuple[Tensor, ...] = output.hidden_states
    return states


# ---- the two parts


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_slots_are_the_whole_encoders_states_at_that_depth(depth: int) -> None:
    whole = whole_encoder()
    encoded = split_encoder(whole, depth=depth).encode_documents(*sample_documents())
    _, _, mask = sample_documents()
    torch.testing.assert_close(encoded.slots[mask], written_out(whole)[depth][mask], **TOLERANCE)
    assert torch.equal(encoded.slot_mask, mask)
    assert encoded.states is encoded.slots


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("depth", [1, 2])
def test_upper_part_on_the_lower_ones_states_is_the_whole_encoder(depth: int, kind: Any) -> None:
    whole, (_, _, mask) = whole_encoder(), sample_documents()
    network = split_encoder(whole, depth=depth)
    network.upper.set_attn_implementation(kind)
    found = network.upper(network.encode_documents(*sample_documents()).slots, mask)
    torch.testing.assert_close(found[mask], written_out(whole)[-1][mask], **TOLERANCE)


@torch.no_grad()
def test_selection_key_is_the_whole_encoders_mean_of_unit_length() -> None:
    whole, (_, _, mask) = whole_encoder(), sample_documents()
    encoded = split_encoder(whole, depth=1).encode_documents(*sample_documents())
    last = written_out(whole)[-1]
    means = torch.stack([last[row, mask[row]].mean(0) for row in range(2)])
    expected = means / means.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoded.selection_key, expected, **TOLERANCE)


@torch.no_grad()
def test_questions_are_read_as_documents_are() -> None:
    network = split_encoder(whole_encoder(), depth=2)
    document = network.encode_documents(*sample_documents())
    question = network.encode_questions(*sample_documents())
    assert torch.equal(question.states, document.slots)
    assert torch.equal(question.mask, document.slot_mask)
    assert torch.equal(question.selection_query, document.selection_key)


@torch.no_grad()
def test_padding_is_without_effect() -> None:
    network, (ids, embeddings, mask) = split_encoder(whole_encoder(), depth=1), sample_documents()
    together = network.encode_documents(ids, embeddings, mask)
    alone = network.encode_documents(ids[1:, :4], embeddings[1:, :4], mask[1:, :4])
    torch.testing.assert_close(together.slots[1:, :4], alone.slots, **TOLERANCE)
    torch.testing.assert_close(together.selection_key[1:], alone.selection_key, **TOLERANCE)


@torch.no_grad()
def test_documents_positions_begin_where_they_are_told_to_and_questions_at_0() -> None:
    whole, (ids, embeddings, mask) = whole_encoder(), sample_documents()
    network = LatentAmortization(ENCODER, depth=1, document_position=5).eval()
    network.load_state_dict(split_encoder(whole, depth=1).state_dict())
    places = whole(
        inputs_embeds=embeddings,
        attention_mask=mask.long(),
        position_ids=torch.arange(5, 11)[None],
        output_hidden_states=True,
    ).hidden_states
    found = network.encode_documents(ids, embeddings, mask).slots
    torch.testing.assert_close(found[mask], places[1][mask], **TOLERANCE)
    question = network.encode_questions(ids, embeddings, mask).states
    torch.testing.assert_close(question[mask], written_out(whole)[1][mask], **TOLERANCE)


def test_selection_may_have_fewer_layers_than_the_encoder_has_above() -> None:
    network = LatentAmortization(ENCODER, depth=1, selection_layers=1)
    assert len(network.upper.layers) == 1
    assert len(LatentAmortization(ENCODER, depth=1).upper.layers) == DEPTH_OF_ALL - 1


def test_network_has_no_words_of_its_own() -> None:
    network = LatentAmortization(ENCODER, depth=1)
    assert [name for name in network.state_dict() if "word_embeddings" in name] == []
    assert network.encoder_config == ENCODER


# ---- the prefix


def sample_target() -> TargetModulation:
    """Five slots; the best are the fourth, the first and the second, the last is not there."""
    scores = torch.tensor([[2.0, 1.0, -1.0, 3.0, -torch.inf]])
    return TargetModulation(
        slots=normal(1, 5, WIDTH), log_bias=scores, document_mass=torch.ones(1, 1)
    )


def sample_prefix_network(kind: LMKind, *, num_prefix_tokens: int) -> LatentPrefix:
    network = LatentPrefix(tiny_base_lm(kind), num_prefix_tokens=num_prefix_tokens)
    with torch.no_grad():
        network.scale.copy_(normal(LAYERS, WIDTH, seed=1))
        network.shift.copy_(normal(LAYERS, WIDTH, seed=2))
    return network


@torch.no_grad()
@pytest.mark.parametrize("kind", LM_KINDS)
def test_prefix_is_the_best_slots_through_the_lms_own_projections(kind: LMKind) -> None:
    network, target = sample_prefix_network(kind, num_prefix_tokens=3), sample_target()
    prefix = network(target)
    best = target.slots[:, [3, 0, 1]]
    assert len(prefix.keys) == len(prefix.values) == LAYERS
    for layer, project in enumerate(tiny_base_lm(kind).key_value_projections()):
        key, value = project(best * network.scale[layer] + network.shift[layer])
        torch.testing.assert_close(prefix.keys[layer], key, **TOLERANCE)
        torch.testing.assert_close(prefix.values[layer], value, **TOLERANCE)


@torch.no_grad()
def test_prefix_levels_the_scores_of_the_slots_it_takes() -> None:
    prefix = sample_prefix_network("bert", num_prefix_tokens=3)(sample_target())
    torch.testing.assert_close(prefix.log_bias, level(torch.tensor([[3.0, 2.0, 1.0]])))


@torch.no_grad()
def test_prefix_of_fewer_slots_than_it_takes_hides_what_is_not_there() -> None:
    prefix = sample_prefix_network("bert", num_prefix_tokens=9)(sample_target())
    assert prefix.num_tokens == 5
    assert prefix.log_bias.isneginf().tolist() == [[False, False, False, False, True]]


@torch.no_grad()
def test_untrained_prefix_is_the_slots_themselves_in_every_layer() -> None:
    base_lm, target = tiny_base_lm("bert"), sample_target()
    prefix = LatentPrefix(base_lm, num_prefix_tokens=1)(target)
    pairs = [project(target.slots[:, 3:4]) for project in base_lm.key_value_projections()]
    torch.testing.assert_close(prefix.keys, tuple(key for key, _ in pairs))
    torch.testing.assert_close(prefix.values, tuple(value for _, value in pairs))


def test_scores_and_slots_of_the_prefix_have_gradients() -> None:
    target = sample_target()
    slots, scores = target.slots.requires_grad_(), target.log_bias.requires_grad_()
    prefix = sample_prefix_network("bert", num_prefix_tokens=3)(target)
    loss = prefix.log_bias[:, 0].sum() + torch.stack(prefix.keys).square().sum()
    loss.backward()
    assert slots.grad is not None
    assert (slots.grad[0].abs().amax(-1) > 0).tolist() == [True, True, False, True, False]
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad[0] != 0).tolist() == [True, True, False, True, False]
