"""The paper's aggregation network on one group of documents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.aggregation import AggregationKeys, AttendAggregation
from tests.unit.networks.bank_samples import (
    CONFIG,
    TOLERANCE,
    VIRTUAL_TOKENS,
    WIDTH,
    attend_network,
    bank_row,
    keys_of,
    permuted,
    question_row,
    sample_bank,
    sample_question,
    with_document,
)

BATCH, DOCUMENTS = 3, 4


@pytest.mark.parametrize("rows", [1, BATCH], ids=["shared bank", "a bank per row"])
def test_batched_questions_equal_one_at_a_time(rows: int) -> None:
    # Defect 2: questions of one batch mixed in the bank axis.
    network, question = attend_network(), sample_question(BATCH)
    bank = sample_bank(BATCH, DOCUMENTS, rows=rows)
    together = network(question, bank, keys_of(network, bank))
    for row in range(BATCH):
        own = bank_row(bank, row)
        alone = network(question_row(question, row), own, keys_of(network, own))
        torch.testing.assert_close(together.slots[row], alone.slots[0], **TOLERANCE)
        torch.testing.assert_close(together.document_mass[row], alone.document_mass[0], **TOLERANCE)


def test_order_of_documents_changes_nothing_but_the_order_of_mass() -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = permuted(bank, order)
    straight = network(question, bank, keys_of(network, bank))
    target = network(question, shuffled, keys_of(network, shuffled))
    torch.testing.assert_close(target.slots, straight.slots, **TOLERANCE)
    torch.testing.assert_close(target.document_mass, straight.document_mass[:, order], **TOLERANCE)


@pytest.mark.parametrize("document", range(DOCUMENTS))
def test_every_document_can_change_the_target(document: int) -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    changed = with_document(bank, document, torch.ones(VIRTUAL_TOKENS, WIDTH).cumsum(1))
    before = network(question, bank, keys_of(network, bank)).slots
    after = network(question, changed, keys_of(network, changed)).slots
    assert (before - after).abs().max() > 1e-4


def test_document_with_log_prior_of_minus_infinity_is_not_read() -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    prior = bank.log_prior.clone()
    prior[:, 1] = -torch.inf
    others = torch.tensor([0, 2, 3])
    without = permuted(replace(bank, log_prior=prior), others)
    excluded = network(question, replace(bank, log_prior=prior), keys_of(network, bank))
    absent = network(question, without, keys_of(network, without))
    torch.testing.assert_close(excluded.slots, absent.slots, **TOLERANCE)
    assert excluded.document_mass[0, 1] == 0


def test_masked_slots_are_not_read() -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    mask = bank.mask.clone()
    mask[:, 2, 1:] = False
    bank = replace(bank, mask=mask)
    slots = bank.slots.clone()
    slots[:, 2, 1:] = 100.0
    loud = replace(bank, slots=slots)
    quiet = network(question, bank, keys_of(network, bank))
    assert torch.equal(quiet.slots, network(question, loud, keys_of(network, loud)).slots)


def test_log_bias_of_slots_takes_part_in_the_score() -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    log_bias = torch.zeros(1, DOCUMENTS, VIRTUAL_TOKENS)
    log_bias[:, 1] = -torch.inf
    target = network(question, replace(bank, log_bias=log_bias), keys_of(network, bank))
    assert target.document_mass[0, 1] == 0


def test_document_mass_sums_to_one_and_follows_the_prior() -> None:
    network, question, bank = attend_network(), sample_question(BATCH), sample_bank(BATCH, 3)
    prior = torch.tensor([[30.0, 0.0, 0.0], [0.0, 30.0, 0.0], [0.0, 0.0, 30.0]])
    target = network(question, replace(bank, log_prior=prior), keys_of(network, bank))
    torch.testing.assert_close(target.document_mass.sum(1), torch.ones(BATCH))
    assert target.document_mass.argmax(1).tolist() == [0, 1, 2]


def test_row_without_documents_has_no_slots_and_no_nan() -> None:
    network, question, bank = attend_network(), sample_question(2), sample_bank(2, DOCUMENTS)
    prior = bank.log_prior.clone()
    prior[0] = -torch.inf
    target = network(question, replace(bank, log_prior=prior), keys_of(network, bank))
    assert target.slots.isfinite().all()
    assert target.document_mass[0].tolist() == [0.0] * DOCUMENTS
    assert target.log_bias[0].tolist() == [-torch.inf] * VIRTUAL_TOKENS
    assert target.log_bias[1].tolist() == [0.0] * VIRTUAL_TOKENS


def test_padding_of_a_question_changes_neither_its_slots_nor_the_mass() -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, DOCUMENTS)
    padded = replace(
        question,
        states=torch.cat([question.states, torch.full((1, 2, WIDTH), 9.0)], dim=1),
        mask=torch.cat([question.mask, torch.zeros(1, 2, dtype=torch.bool)], dim=1),
    )
    target = network(question, bank, keys_of(network, bank))
    longer = network(padded, bank, keys_of(network, bank))
    torch.testing.assert_close(longer.slots[:, :VIRTUAL_TOKENS], target.slots, **TOLERANCE)
    torch.testing.assert_close(longer.document_mass, target.document_mass, **TOLERANCE)
    assert longer.log_bias[0].tolist() == [0.0] * VIRTUAL_TOKENS + [-torch.inf] * 2


def test_question_states_of_another_width_are_mapped() -> None:
    network = AttendAggregation(replace(CONFIG, d_question=5))
    question = replace(sample_question(1), states=torch.ones(1, VIRTUAL_TOKENS, 5))
    bank = sample_bank(1, DOCUMENTS)
    assert network(question, bank, keys_of(network, bank)).slots.shape == (1, VIRTUAL_TOKENS, WIDTH)


def test_cached_keys_spare_every_question_the_documents_projections() -> None:
    # Defect 6: keys and values projected anew for every question in every block.
    network, bank = attend_network(), sample_bank(2, DOCUMENTS)
    projected: list[int] = []

    def count(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        projected.append(inputs[0].shape[:-1].numel())

    for block in network.reading_blocks():
        block.key.register_forward_hook(count)
        block.value.register_forward_hook(count)
    keys = keys_of(network, bank)
    assert projected == [DOCUMENTS * VIRTUAL_TOKENS] * 2 * CONFIG.num_blocks
    network(sample_question(2), bank, keys)
    network(sample_question(2, seed=5), bank, keys)
    assert len(projected) == 2 * CONFIG.num_blocks


def test_keys_do_not_depend_on_the_other_documents() -> None:
    network, bank = attend_network(), sample_bank(1, DOCUMENTS)
    together = network.keys(bank.slots[0], bank.mask[0])
    alone = [network.keys(bank.slots[0, i], bank.mask[0, i]) for i in range(DOCUMENTS)]
    for one, all_ in zip(AggregationKeys.stack(alone).tensors, together.tensors, strict=True):
        torch.testing.assert_close(one, all_, **TOLERANCE)


def test_stack_fills_shorter_documents_with_zeros() -> None:
    short = AggregationKeys(tensors=(torch.ones(1, 2),))
    long = AggregationKeys(tensors=(torch.ones(3, 2),))
    (stacked,) = AggregationKeys.stack([short, long]).tensors
    assert stacked[..., 0].tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_stack_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="no aggregation keys"):
        AggregationKeys.stack([])


def test_select_by_slice_is_a_view() -> None:
    keys = AggregationKeys(tensors=(torch.zeros(4, 2),))
    (rows,) = keys.select(slice(1, 3)).tensors
    assert rows.shape == (2, 2)
    assert rows.untyped_storage().data_ptr() == keys.tensors[0].untyped_storage().data_ptr()
