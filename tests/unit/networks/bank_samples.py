"""Small seeded questions and banks for the tests of aggregation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mac_core.config import AggregationConfig
from mac_core.networks.aggregation import AggregationKeys, AttendAggregation
from mac_core.networks.values import BankSlice, QuestionEncoding

WIDTH = 16
VIRTUAL_TOKENS = 3
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums in another order

CONFIG = AggregationConfig(
    kind="attend",
    d_modulation=WIDTH,
    d_question=WIDTH,
    max_group=4,
    num_blocks=2,
    num_heads=2,
    head_dim=8,
    d_feedforward=32,
)


def attend_network(config: AggregationConfig = CONFIG, *, seed: int = 0) -> AttendAggregation:
    """An `AttendAggregation` with seeded weights."""
    network = AttendAggregation(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def sample_question(batch: int, *, seed: int = 1) -> QuestionEncoding:
    generator = torch.Generator().manual_seed(seed)
    return QuestionEncoding(
        states=torch.randn(batch, VIRTUAL_TOKENS, WIDTH, generator=generator),
        mask=torch.ones(batch, VIRTUAL_TOKENS, dtype=torch.bool),
        selection_query=torch.zeros(batch, 2),
    )


def sample_bank(batch: int, documents: int, *, rows: int = 1, seed: int = 2) -> BankSlice:
    """A bank of `rows` (1: shared by the batch) with a random prior."""
    generator = torch.Generator().manual_seed(seed)
    return BankSlice(
        slots=torch.randn(rows, documents, VIRTUAL_TOKENS, WIDTH, generator=generator),
        mask=torch.ones(rows, documents, VIRTUAL_TOKENS, dtype=torch.bool),
        log_prior=torch.randn(batch, documents, generator=generator).log_softmax(-1),
    )


def keys_of(network: AttendAggregation, bank: BankSlice) -> AggregationKeys:
    return network.keys(bank.slots, bank.mask)


def question_row(question: QuestionEncoding, row: int) -> QuestionEncoding:
    index = slice(row, row + 1)
    return QuestionEncoding(
        states=question.states[index],
        mask=question.mask[index],
        selection_query=question.selection_query[index],
    )


def bank_row(bank: BankSlice, row: int) -> BankSlice:
    """The bank as one question of the batch sees it."""
    index = slice(row, row + 1)
    shared = len(bank.slots) == 1
    return BankSlice(
        slots=bank.slots if shared else bank.slots[index],
        mask=bank.mask if shared else bank.mask[index],
        log_prior=bank.log_prior[index],
    )


def with_document(bank: BankSlice, document: int, slots: Tensor) -> BankSlice:
    """The bank with one document's slots replaced."""
    changed = bank.slots.clone()
    changed[:, document] = slots
    return replace(bank, slots=changed)


def permuted(bank: BankSlice, order: Tensor) -> BankSlice:
    return BankSlice(
        slots=bank.slots[:, order], mask=bank.mask[:, order], log_prior=bank.log_prior[:, order]
    )
