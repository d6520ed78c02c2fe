"""The attend network against a slow reference, in float64, one number at a time where it can be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.config import AggregationConfig
from mac_core.networks.aggregation import AttendAggregation, CrossAttentionBlock
from mac_core.networks.hierarchy import aggregate_flat, shard_bank
from mac_core.networks.values import BankSlice, QuestionEncoding

CONFIG = AggregationConfig(
    kind="attend",
    d_modulation=12,
    d_question=7,
    num_blocks=2,
    num_heads=2,
    head_dim=5,
    d_feedforward=9,
)
BATCH, DOCUMENTS, VIRTUAL_TOKENS, TARGET_TOKENS = 2, 4, 3, 5
FLOAT64 = {"rtol": 1e-6, "atol": 1e-6}  # scores are float32 by design
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def linear(layer: torch.nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, torch.nn.Linear)
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def layer_norm(layer: torch.nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, torch.nn.LayerNorm)
    centred = x - x.mean()
    return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def read_slots(
    block: CrossAttentionBlock, token: Tensor, slots: list[Tensor], biases: list[float]
) -> tuple[Tensor, Tensor]:
    """One target token after one block, and its weight on each slot averaged over heads."""
    query = linear(block.query, layer_norm(block.norm_target, token))
    keys = [linear(block.key, layer_norm(block.norm_slots, slot)) for slot in slots]
    values = [linear(block.value, layer_norm(block.norm_slots, slot)) for slot in slots]
    mixed, mean_weights = [], torch.zeros(len(slots), dtype=torch.float64)
    for head in range(CONFIG.num_heads):
        part = slice(head * CONFIG.head_dim, (head + 1) * CONFIG.head_dim)
        scores = [
            float(query[part] @ key[part]) / math.sqrt(CONFIG.head_dim) + bias
            for key, bias in zip(keys, biases, strict=True)
        ]
        exps = [math.exp(score) for score in scores]
        weights = [e / sum(exps) for e in exps]
        mixed.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
        mean_weights += torch.tensor(weights, dtype=torch.float64) / CONFIG.num_heads
    token = token + linear(block.out, torch.cat([torch.as_tensor(part) for part in mixed]))
    norm, up, _, down = block.feedforward
    return token + linear(down, gelu(linear(up, layer_norm(norm, token)))), mean_weights


def reference(
    network: AttendAggregation, question: QuestionEncoding, bank: BankSlice, row: int
) -> tuple[Tensor, Tensor]:
    """Target modulation and document mass of one row, by the definition."""
    places = [
        (document, slot)
        for document in range(DOCUMENTS)
        for slot in range(VIRTUAL_TOKENS)
        if bank.mask[0, document, slot] and bank.log_prior[row, document] > -math.inf
    ]
    slots = [bank.slots[0, document, slot] for document, slot in places]
    biases = [float(bank.log_prior[row, document]) for document, _ in places]
    tokens = [linear(network.start, state) for state in question.states[row]]
    mass = torch.zeros(DOCUMENTS, dtype=torch.float64)
    for block in network.reading_blocks():
        results = [read_slots(block, token, slots, biases) for token in tokens]
        tokens = [token for token, _ in results]
        for _, weights in results:
            for (document, _), weight in zip(places, weights, strict=True):
                mass[document] += weight / (CONFIG.num_blocks * len(tokens))
    return torch.stack(tokens), mass


def sample() -> tuple[AttendAggregation, QuestionEncoding, BankSlice]:
    """A network, questions and a bank with a masked slot and an excluded document; float64."""
    generator = torch.Generator().manual_seed(0)
    network = AttendAggregation(CONFIG).double().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    states = torch.randn(BATCH, TARGET_TOKENS, CONFIG.d_question, generator=generator)
    slots = torch.randn(1, DOCUMENTS, VIRTUAL_TOKENS, CONFIG.d_modulation, generator=generator)
    mask = torch.ones(1, DOCUMENTS, VIRTUAL_TOKENS, dtype=torch.bool)
    mask[0, 1, 2] = False
    log_prior = torch.randn(BATCH, DOCUMENTS, generator=generator)
    log_prior[1, 3] = -torch.inf
    question = QuestionEncoding(
        states=states.double(),
        mask=torch.ones(BATCH, TARGET_TOKENS, dtype=torch.bool),
        selection_query=torch.zeros(BATCH, 1),
    )
    return network, question, BankSlice(slots=slots.double(), mask=mask, log_prior=log_prior)


@pytest.mark.parametrize("row", range(BATCH))
def test_one_group_matches_the_reference(row: int) -> None:
    network, question, bank = sample()
    slots, mass = reference(network, question, bank, row)
    target = network(question, bank, network.keys(bank.slots, bank.mask))
    torch.testing.assert_close(target.slots[row], slots, **FLOAT64)
    torch.testing.assert_close(target.document_mass[row].double(), mass, **FLOAT64)


@pytest.mark.parametrize("row", range(BATCH))
@pytest.mark.parametrize("max_documents", [1, 3])
def test_flat_aggregation_matches_the_reference(row: int, max_documents: int) -> None:
    network, question, bank = sample()
    slots, mass = reference(network, question, bank, row)
    keys = network.keys(bank.slots, bank.mask)
    shards = shard_bank(bank, keys, max_documents=max_documents)
    target = aggregate_flat(network, question, shards)
    torch.testing.assert_close(target.slots[row], slots, **FLOAT64)
    torch.testing.assert_close(target.document_mass[row].double(), mass, **FLOAT64)


@pytest.mark.parametrize("row", range(BATCH))
def test_float32_matches_the_reference(row: int) -> None:
    network, question, bank = sample()
    slots, _ = reference(network, question, bank, row)
    network = network.float()
    single = replace(bank, slots=bank.slots.float())
    target = network(
        replace(question, states=question.states.float()),
        single,
        network.keys(single.slots, single.mask),
    )
    torch.testing.assert_close(target.slots[row].double(), slots, **FLOAT32)
