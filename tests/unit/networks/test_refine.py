"""Aggregation by reading again: each document by itself, and the best slots of all stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mac_core.networks.refine as refine
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.hierarchy import aggregate_hierarchically
from mac_core.networks.refine import RefineAggregation
from mac_core.networks.values import BankSlice, Origin, QuestionEncoding, TargetModulation
from tests.unit.networks.bank_samples import (
    CONFIG,
    TOLERANCE,
    VIRTUAL_TOKENS,
    WIDTH,
    bank_row,
    permuted,
    question_row,
    sample_bank,
    sample_question,
    with_document,
)

KEPT = 5
DOCUMENTS = 4
EVERYTHING = 1000
NO_KEYS = AggregationKeys(tensors=())
ENCODER: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 10,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def refining(*, kept: int = KEPT) -> RefineAggregation:
    """A network whose evidence and sides, unlike at the start of training, matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = replace(CONFIG, kind="refine", num_blocks=2)
        network = RefineAggregation(config, ENCODER, num_virtual_tokens=kept).eval()
        torch.nn.init.normal_(network.side)
        torch.nn.init.normal_(network.evidence.weight)
    return network


def numbered(bank: BankSlice) -> BankSlice:
    """The bank with an origin that names each slot's document and its place there."""
    rows, documents, slots = bank.mask.shape
    origin = torch.zeros(rows, documents, slots, len(Origin), dtype=torch.int64)
    origin[..., Origin.DOCUMENT] = torch.arange(documents)[:, None]
    origin[..., Origin.POSITION] = torch.arange(slots)
    return replace(bank, origin=origin)


def run(
    network: RefineAggregation, question: QuestionEncoding, bank: BankSlice
) -> TargetModulation:
    return network(question, numbered(bank), NO_KEYS)


def at_their_places(target: TargetModulation, documents: int) -> tuple[Tensor, Tensor]:
    """All slots `(batch, documents, virtual_tokens, width)` and their scores, as the bank lies."""
    assert target.origin is not None
    shape = (len(target.slots), documents, VIRTUAL_TOKENS)
    document, position = target.origin[..., Origin.DOCUMENT], target.origin[..., Origin.POSITION]
    order = (document * VIRTUAL_TOKENS + position).argsort(1)
    slots = target.slots.gather(1, order[..., None].expand(-1, -1, WIDTH))
    return slots.reshape(*shape, WIDTH), target.log_bias.gather(1, order).reshape(shape)


def read_apart(
    network: RefineAggregation, question: QuestionEncoding, bank: BankSlice, document: int
) -> tuple[Tensor, Tensor]:
    """One document written out, without padding: its refined slots and their scores."""
    asked = question.states[0][question.mask[0]] + network.side[0]
    slots = bank.slots[0, document][bank.mask[0, document]] + network.side[1]
    both = torch.cat([asked, slots])[None]
    read = network.stack(both, torch.ones(both.shape[:2], dtype=torch.bool))[0, len(asked) :]
    scores = read @ network.evidence.weight[0] + network.evidence.bias
    return read, scores + bank.log_prior[0, document]


def ragged_bank(batch: int, documents: int, *, rows: int = 1) -> BankSlice:
    """Documents of one, two and three slots in turn."""
    bank = sample_bank(batch, documents, rows=rows)
    lengths = torch.arange(documents) % VIRTUAL_TOKENS + 1
    mask = torch.arange(VIRTUAL_TOKENS) < lengths[:, None]
    return replace(bank, mask=mask.expand(rows, -1, -1))


def assert_alike(actual: TargetModulation, expected: TargetModulation) -> None:
    torch.testing.assert_close(actual.log_bias, expected.log_bias, **TOLERANCE)
    real = expected.log_bias > -torch.inf
    torch.testing.assert_close(actual.slots[real], expected.slots[real], **TOLERANCE)
    assert torch.equal(actual.origin[real], expected.origin[real])


# ---- reading


@torch.no_grad()
@pytest.mark.parametrize("document", range(DOCUMENTS))
def test_document_is_read_with_the_question_by_itself(document: int) -> None:
    network, question = refining(kept=EVERYTHING), sample_question(1)
    bank = ragged_bank(1, DOCUMENTS)
    slots, scores = at_their_places(run(network, question, bank), DOCUMENTS)
    expected_slots, expected_scores = read_apart(network, question, bank, document)
    real = bank.mask[0, document]
    torch.testing.assert_close(slots[0, document][real], expected_slots, **TOLERANCE)
    torch.testing.assert_close(scores[0, document][real], expected_scores, **TOLERANCE)


@torch.no_grad()
def test_other_documents_do_not_change_a_documents_slots() -> None:
    network, question = refining(kept=EVERYTHING), sample_question(1)
    bank = sample_bank(1, DOCUMENTS)
    other = with_document(bank, 1, torch.ones(VIRTUAL_TOKENS, WIDTH).cumsum(1))
    before, after = (
        at_their_places(run(network, question, b), DOCUMENTS)[0][0] for b in (bank, other)
    )
    moved = (after - before).abs().amax((1, 2)) > 1e-5
    assert moved.tolist() == [False, True, False, False]


@torch.no_grad()
def test_question_changes_the_slots_of_every_document() -> None:
    network, bank = refining(kept=EVERYTHING), sample_bank(1, DOCUMENTS)
    before, after = (
        at_their_places(run(network, sample_question(1, seed=seed), bank), DOCUMENTS)[0][0]
        for seed in (1, 2)
    )
    assert (after - before).abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
def test_masked_slots_are_without_effect() -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, DOCUMENTS)
    loud = bank.slots.masked_fill(~bank.mask[..., None], 50.0)
    expected, found = (run(network, question, b) for b in (bank, replace(bank, slots=loud)))
    assert_alike(found, expected)


@torch.no_grad()
def test_padded_question_tokens_are_without_effect() -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, DOCUMENTS)
    loud = torch.cat([question.states, torch.full_like(question.states, 50.0)], dim=1)
    mask = torch.cat([question.mask, torch.zeros_like(question.mask)], dim=1)
    padded = replace(question, states=loud, mask=mask)
    assert_alike(run(network, padded, bank), run(network, question, bank))


@torch.no_grad()
@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("round_to", [1, 2, 16])
def test_what_is_read_together_is_without_effect(
    monkeypatch: pytest.MonkeyPatch, parts: int, round_to: int
) -> None:
    network, question, bank = refining(), sample_question(3), ragged_bank(3, DOCUMENTS, rows=3)
    monkeypatch.setattr(refine, "MAX_PARTS", 1)
    whole = run(network, question, bank)
    monkeypatch.setattr(refine, "MAX_PARTS", parts)
    monkeypatch.setattr(refine, "MIN_PART", 1)
    monkeypatch.setattr(refine, "LENGTH_ROUND", round_to)
    assert_alike(run(network, question, bank), whole)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
def test_batched_questions_equal_one_at_a_time(rows: int) -> None:
    network, question = refining(), sample_question(3)
    bank = ragged_bank(3, DOCUMENTS, rows=rows)
    together = run(network, question, bank)
    for row in range(3):
        alone = run(network, question_row(question, row), bank_row(bank, row))
        torch.testing.assert_close(together.slots[row], alone.slots[0], **TOLERANCE)
        torch.testing.assert_close(together.log_bias[row], alone.log_bias[0], **TOLERANCE)
        torch.testing.assert_close(together.document_mass[row], alone.document_mass[0], **TOLERANCE)


# ---- keeping


@torch.no_grad()
def test_best_slots_of_the_group_are_kept() -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, DOCUMENTS)
    parts = [read_apart(network, question, bank, document) for document in range(DOCUMENTS)]
    expected, index = torch.cat([scores for _, scores in parts]).topk(KEPT)
    target = run(network, question, bank)
    torch.testing.assert_close(target.log_bias[0], expected, **TOLERANCE)
    slots = torch.cat([slots for slots, _ in parts])[index]
    torch.testing.assert_close(target.slots[0], slots, **TOLERANCE)
    owner = torch.cat([torch.full((len(s),), d) for d, (_, s) in enumerate(parts)])[index]
    assert target.origin is not None
    assert torch.equal(target.origin[0, :, Origin.DOCUMENT], owner)
    mass = torch.zeros(DOCUMENTS).index_add(0, owner, expected.softmax(0))
    torch.testing.assert_close(target.document_mass[0], mass, **TOLERANCE)


@torch.no_grad()
def test_order_of_documents_is_without_effect() -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, DOCUMENTS)
    order = torch.tensor([2, 0, 3, 1])
    straight, turned = (run(network, question, b) for b in (bank, permuted(bank, order)))
    torch.testing.assert_close(turned.log_bias, straight.log_bias, **TOLERANCE)
    torch.testing.assert_close(turned.slots, straight.slots, **TOLERANCE)
    torch.testing.assert_close(turned.document_mass, straight.document_mass[:, order], **TOLERANCE)


@torch.no_grad()
def test_what_is_not_there_is_never_kept() -> None:
    network, question, bank = refining(), sample_question(1), sample_bank(1, 2)
    mask, prior = bank.mask.clone(), bank.log_prior.clone()
    mask[:, 0, 1:] = False
    prior[:, 1] = -torch.inf
    target = run(network, question, replace(bank, mask=mask, log_prior=prior))
    assert (target.log_bias > -torch.inf).tolist() == [[True, False, False, False, False]]
    assert target.origin is not None
    assert target.origin[0, 0].tolist() == [0, 0, 0, 0]
    assert target.document_mass.tolist() == [[1.0, 0.0]]


@torch.no_grad()
def test_row_without_documents_has_neither_slots_nor_mass() -> None:
    network, question = refining(), sample_question(2)
    bank = sample_bank(2, DOCUMENTS, rows=2)
    mask = bank.mask.clone()
    mask[0] = False
    target = run(network, question, replace(bank, mask=mask))
    assert target.slots.isfinite().all()
    assert target.log_bias[0].tolist() == [-torch.inf] * KEPT
    assert target.document_mass[0].tolist() == [0.0] * DOCUMENTS
    assert float(target.document_mass[1].sum()) == pytest.approx(1.0)


@torch.no_grad()
def test_batch_without_any_document_has_neither_slots_nor_mass() -> None:
    bank = sample_bank(2, DOCUMENTS)
    target = run(refining(), sample_question(2), replace(bank, mask=torch.zeros_like(bank.mask)))
    assert target.slots.isfinite().all()
    assert target.log_bias.isneginf().all()
    assert not target.document_mass.any()


@torch.no_grad()
def test_slots_that_have_their_scores_are_not_read_again() -> None:
    bank = sample_bank(1, 2)
    scores = torch.tensor([[[0.1, 5.0, 0.3], [4.0, -1.0, 2.0]]])
    above = replace(bank, log_bias=scores, log_prior=torch.tensor([[-9.0, 0.0]]))
    target = run(refining(kept=3), sample_question(1), above)
    assert target.log_bias.tolist() == [[5.0, 4.0, 2.0]]
    assert torch.equal(target.slots[0], bank.slots[0, [0, 1, 1], [1, 0, 2]])


# ---- in groups, and learning


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
@pytest.mark.parametrize("documents", [1, 3, 4, 5, 9, 18])
def test_refining_by_groups_is_refining_the_whole_bank(documents: int, rows: int) -> None:
    network, question = refining(), sample_question(3)
    bank = numbered(ragged_bank(3, documents, rows=rows))
    flat = network(question, bank, NO_KEYS)
    grouped = aggregate_hierarchically(network, question, bank, NO_KEYS, max_group=4)
    assert_alike(grouped, flat)
    torch.testing.assert_close(grouped.document_mass, flat.document_mass, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("documents", [5, 9, 18])
def test_order_of_documents_is_without_effect_by_groups(documents: int) -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, documents)
    order = torch.randperm(documents, generator=torch.Generator().manual_seed(4))
    straight, turned = (
        aggregate_hierarchically(network, question, numbered(b), NO_KEYS, max_group=4)
        for b in (bank, permuted(bank, order))
    )
    mass, log_null = straight.document_mass, straight.log_null
    assert log_null is not None
    assert int((mass > 0).sum()) < documents  # some lose every slot
    torch.testing.assert_close(turned.document_mass, mass[:, order], **TOLERANCE)
    torch.testing.assert_close(turned.log_null, log_null[:, order], **TOLERANCE)


@torch.no_grad()
def test_no_more_documents_than_a_group_has_are_read_at_once() -> None:
    # Defect 7: memory that grows with the bank.
    network, bank = refining(), numbered(ragged_bank(1, 18))
    read: list[int] = []
    network.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[1].log_prior.shape[1])
    )
    aggregate_hierarchically(network, sample_question(1), bank, NO_KEYS, max_group=4)
    assert max(read) == 4


@torch.no_grad()
@pytest.mark.parametrize("documents", [3, 5, 18])
def test_mass_by_groups_is_exact_where_every_slot_is_kept(documents: int) -> None:
    network, question = refining(kept=EVERYTHING), sample_question(2)
    bank = numbered(ragged_bank(2, documents))
    flat = network(question, bank, NO_KEYS)
    grouped = aggregate_hierarchically(network, question, bank, NO_KEYS, max_group=4)
    torch.testing.assert_close(grouped.document_mass, flat.document_mass, **TOLERANCE)


def test_kept_scores_train_every_part() -> None:
    network, bank = refining(), ragged_bank(1, DOCUMENTS)
    target = run(network, sample_question(1), bank)
    weighed = target.log_bias.softmax(1)[..., None] * target.slots * torch.arange(WIDTH)
    weighed.sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert network.side.grad is not None
    assert (network.side.grad.abs().amax(1) > 0).all()


def test_gradient_is_finite_beside_a_row_without_documents() -> None:
    network, bank = refining(), ragged_bank(2, DOCUMENTS, rows=2)
    mask = bank.mask.clone()
    mask[0] = False
    target = run(network, sample_question(2), replace(bank, mask=mask))
    real = target.log_bias > -torch.inf
    (target.log_bias[real].sum() + target.slots[real].square().sum()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)


# ---- documents that do not answer


@torch.no_grad()
def test_a_documents_first_slot_says_how_likely_it_does_not_answer() -> None:
    network, question = refining(), sample_question(1)
    bank = ragged_bank(1, DOCUMENTS)
    target = run(network, question, bank)
    assert target.log_null is not None
    for document in range(DOCUMENTS):
        _, scores = read_apart(network, question, bank, document)
        expected = scores.log_softmax(0)[0]
        torch.testing.assert_close(target.log_null[0, document], expected, **TOLERANCE)


@torch.no_grad()
def test_whether_a_document_answers_depends_neither_on_its_prior_nor_on_the_others() -> None:
    network, question, bank = refining(), sample_question(1), ragged_bank(1, DOCUMENTS)
    everything = run(network, question, bank).log_null
    alone = replace(
        bank,
        slots=bank.slots[:, 1:2],
        mask=bank.mask[:, 1:2],
        log_prior=torch.zeros(1, 1),
    )
    assert everything is not None
    found = run(network, question, alone).log_null
    torch.testing.assert_close(found, everything[:, 1:2], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
@pytest.mark.parametrize("documents", [3, 5, 18])
def test_groups_say_the_same_of_every_document(documents: int, rows: int) -> None:
    network, question = refining(), sample_question(3)
    bank = numbered(ragged_bank(3, documents, rows=rows))
    flat = network(question, bank, NO_KEYS).log_null
    grouped = aggregate_hierarchically(network, question, bank, NO_KEYS, max_group=4).log_null
    torch.testing.assert_close(grouped, flat, **TOLERANCE)


def test_a_document_without_slots_does_not_answer_and_has_no_gradient_of_nan() -> None:
    network, bank = refining(), ragged_bank(1, DOCUMENTS)
    mask = bank.mask.clone()
    mask[0, 2] = False
    log_null = run(network, sample_question(1), replace(bank, mask=mask)).log_null
    assert log_null is not None
    assert float(log_null.detach()[0, 2]) == 0.0
    log_null.sum().backward()
    assert network.evidence.weight.grad is not None
    assert network.evidence.weight.grad.isfinite().all()
