"""Aggregation by selection: which slots stay, with which bias, in one group or in many."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.hierarchy import aggregate_hierarchically
from mac_core.networks.select import SelectAggregation
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation
from tests.unit.networks.bank_samples import (
    CONFIG,
    TOLERANCE,
    VIRTUAL_TOKENS,
    bank_row,
    permuted,
    question_row,
    sample_bank,
    sample_question,
)

KEPT = 5
DOCUMENTS = 4


@pytest.fixture
def network() -> SelectAggregation:
    config = replace(CONFIG, kind="select", d_score=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = SelectAggregation(config, num_virtual_tokens=KEPT)
    with torch.no_grad():
        network.key.weight.mul_(30.0)  # it begins near equal scores
    return network


def select(
    network: SelectAggregation,
    question: QuestionEncoding,
    bank: BankSlice,
    *,
    max_group: int | None = None,
) -> TargetModulation:
    keys = network.keys(bank.slots, bank.mask)
    if max_group is None:
        return network(question, bank, keys)
    return aggregate_hierarchically(network, question, bank, keys, max_group=max_group)


def slow_scores(network: SelectAggregation, question: QuestionEncoding, bank: BankSlice) -> Tensor:
    """Late interaction written out for one question: `(documents, virtual_tokens)`."""
    (states,), (real,) = question.states, question.mask
    queries = [network.query(state) for state in states[real]]
    scores = torch.full(bank.mask.shape[1:], -torch.inf)
    for document, slot in bank.mask[0].nonzero().tolist():
        key = network.key(bank.slots[0, document, slot])
        best = max(float(query @ key) for query in queries) * network.scale
        scores[document, slot] = best + bank.log_prior[0, document]
    return scores


@torch.no_grad()
def test_best_scoring_slots_are_kept_as_they_are(network: SelectAggregation) -> None:
    question, bank = sample_question(1), sample_bank(1, DOCUMENTS)
    expected, index = slow_scores(network, question, bank).flatten().topk(KEPT)
    target = select(network, question, bank)
    torch.testing.assert_close(target.log_bias[0], expected, **TOLERANCE)
    assert torch.equal(target.slots[0], bank.slots[0].flatten(0, 1)[index])
    weights = torch.zeros(DOCUMENTS * VIRTUAL_TOKENS)
    weights[index] = expected.softmax(0)
    mass = weights.reshape(DOCUMENTS, VIRTUAL_TOKENS).sum(1)
    torch.testing.assert_close(target.document_mass[0], mass, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
@pytest.mark.parametrize("documents", [1, 4, 5, 8, 9, 65])
def test_selection_by_groups_is_selection_from_the_whole_bank(
    network: SelectAggregation, documents: int, rows: int
) -> None:
    question, bank = sample_question(3), sample_bank(3, documents, rows=rows)
    flat = select(network, question, bank)
    grouped = select(network, question, bank, max_group=4)
    real = flat.log_bias > -torch.inf
    torch.testing.assert_close(grouped.log_bias, flat.log_bias, **TOLERANCE)
    assert torch.equal(grouped.slots[real], flat.slots[real])
    torch.testing.assert_close(grouped.document_mass, flat.document_mass, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("documents", [5, 9, 18])
def test_order_of_documents_is_without_effect_on_mass_by_groups(
    network: SelectAggregation, documents: int
) -> None:
    question, bank = sample_question(1), sample_bank(1, documents)
    order = torch.randperm(documents, generator=torch.Generator().manual_seed(4))
    straight, turned = (
        select(network, question, b, max_group=4).document_mass
        for b in (bank, permuted(bank, order))
    )
    assert int((straight > 0).sum()) < documents  # some lose every slot
    torch.testing.assert_close(turned, straight[:, order], **TOLERANCE)


@torch.no_grad()
def test_order_of_documents_is_without_effect(network: SelectAggregation) -> None:
    question, bank = sample_question(1), sample_bank(1, DOCUMENTS)
    order = torch.tensor([2, 0, 3, 1])
    straight, turned = (select(network, question, b) for b in (bank, permuted(bank, order)))
    assert torch.equal(turned.slots, straight.slots)
    torch.testing.assert_close(turned.log_bias, straight.log_bias, **TOLERANCE)
    torch.testing.assert_close(turned.document_mass, straight.document_mass[:, order], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
def test_batched_questions_equal_one_at_a_time(network: SelectAggregation, rows: int) -> None:
    question, bank = sample_question(3), sample_bank(3, DOCUMENTS, rows=rows)
    together = select(network, question, bank)
    for row in range(3):
        alone = select(network, question_row(question, row), bank_row(bank, row))
        assert torch.equal(together.slots[row], alone.slots[0])
        torch.testing.assert_close(together.log_bias[row], alone.log_bias[0], **TOLERANCE)


@torch.no_grad()
def test_what_is_not_there_is_never_kept(network: SelectAggregation) -> None:
    question, bank = sample_question(1), sample_bank(1, 2)
    mask, prior = bank.mask.clone(), bank.log_prior.clone()
    mask[:, 0, 1:] = False
    prior[:, 1] = -torch.inf
    target = select(network, question, replace(bank, mask=mask, log_prior=prior))
    assert (target.log_bias > -torch.inf).tolist() == [[True, False, False, False, False]]
    assert torch.equal(target.slots[0, 0], bank.slots[0, 0, 0])
    assert target.document_mass.tolist() == [[1.0, 0.0]]


@torch.no_grad()
def test_padded_question_tokens_ask_for_nothing(network: SelectAggregation) -> None:
    question, bank = sample_question(1), sample_bank(1, DOCUMENTS)
    loud = torch.cat([question.states, torch.full_like(question.states, 50.0)], dim=1)
    mask = torch.cat([question.mask, torch.zeros_like(question.mask)], dim=1)
    padded = replace(question, states=loud, mask=mask)
    torch.testing.assert_close(
        select(network, padded, bank).log_bias, select(network, question, bank).log_bias
    )


@torch.no_grad()
def test_row_without_documents_has_neither_slots_nor_mass(network: SelectAggregation) -> None:
    question, bank = sample_question(2), sample_bank(2, DOCUMENTS, rows=2)
    mask = bank.mask.clone()
    mask[0] = False
    target = select(network, question, replace(bank, mask=mask))
    assert target.slots.isfinite().all()
    assert target.log_bias[0].tolist() == [-torch.inf] * KEPT
    assert target.document_mass[0].tolist() == [0.0] * DOCUMENTS
    assert float(target.document_mass[1].sum()) == pytest.approx(1.0)


def test_kept_scores_train_keys_and_queries(network: SelectAggregation) -> None:
    question, bank = sample_question(1), sample_bank(1, DOCUMENTS)
    target = select(network, question, bank)
    (target.log_bias.softmax(1) * torch.arange(KEPT)).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@torch.no_grad()
def test_untrained_scores_are_nearly_equal() -> None:
    network = SelectAggregation(replace(CONFIG, kind="select"), num_virtual_tokens=KEPT)
    bank = replace(sample_bank(1, 1), log_prior=torch.zeros(1, 1))
    bias = select(network, sample_question(1), bank).log_bias
    assert float(bias.max() - bias.min()) < 0.5
