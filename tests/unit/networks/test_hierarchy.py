"""Aggregation of banks larger than one group: coverage, levels, mass, exactness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.aggregation import AggregationKeys, AggregationNetwork
from mac_core.networks.attention import OnlineSoftmax, Shard, attend_online
from mac_core.networks.hierarchy import (
    aggregate_bank,
    aggregate_flat,
    aggregate_hierarchically,
    group_ranges,
    num_levels,
    rows_by_level,
    shard_bank,
)
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation
from tests.unit.networks.bank_samples import (
    CONFIG,
    TOLERANCE,
    VIRTUAL_TOKENS,
    WIDTH,
    attend_network,
    bank_row,
    keys_of,
    question_row,
    sample_bank,
    sample_question,
    with_document,
)

MAX_GROUP = 4
BANK_SIZES = [1, MAX_GROUP - 1, MAX_GROUP, MAX_GROUP + 1, 1665]


class RecordedNetwork(AggregationNetwork):
    """Passes on to another network and keeps what it was asked."""

    def __init__(self, network: AggregationNetwork) -> None:
        super().__init__()
        self.network = network
        self.banks: list[BankSlice] = []

    def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
        return self.network.keys(slots, mask)

    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        self.banks.append(bank)
        return self.network(question, bank, keys)


def aggregate(
    network: AggregationNetwork, question: QuestionEncoding, bank: BankSlice
) -> TargetModulation:
    keys = network.keys(bank.slots, bank.mask)
    return aggregate_hierarchically(network, question, bank, keys, max_group=MAX_GROUP)


@pytest.mark.parametrize("bank_size", [0, *BANK_SIZES])
def test_groups_cover_every_document_once(bank_size: int) -> None:
    groups = group_ranges(bank_size, max_group=MAX_GROUP)
    assert [document for group in groups for document in group] == list(range(bank_size))
    assert all(len(group) <= MAX_GROUP for group in groups)


@pytest.mark.parametrize("bank_size", BANK_SIZES)
def test_gradient_reaches_every_document(bank_size: int) -> None:
    # Defect 1: a hierarchy that steps over the question's tokens leaves most documents unread.
    network, bank = attend_network(), sample_bank(1, bank_size)
    slots = bank.slots.clone().requires_grad_()
    target = aggregate(network, sample_question(1), replace(bank, slots=slots))
    target.slots.square().sum().backward()
    assert slots.grad is not None
    assert slots.grad.isfinite().all()
    assert (slots.grad[0].abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize(
    ("bank_size", "document"),
    [(size, index) for size in BANK_SIZES[:-1] for index in range(size)]
    + [(17, 0), (17, 15), (17, 16)],
)
def test_changing_any_one_document_changes_the_target(bank_size: int, document: int) -> None:
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, bank_size)
    changed = with_document(bank, document, torch.ones(VIRTUAL_TOKENS, WIDTH).cumsum(1))
    before = aggregate(network, question, bank).slots
    assert (before - aggregate(network, question, changed).slots).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("bank_size", "max_group", "levels"),
    [(1, 4, 1), (4, 4, 1), (5, 4, 2), (16, 4, 2), (17, 4, 3), (1665, 16, 3), (1665, 4, 6)],
)
def test_levels_are_at_most_the_logarithm(bank_size: int, max_group: int, levels: int) -> None:
    assert num_levels(bank_size, max_group=max_group) == levels
    assert bank_size <= max_group**levels


def test_rows_of_like_levels_are_together_and_empty_banks_nowhere() -> None:
    assert rows_by_level([17, 3, 0, 5, 4, 16, 1], max_group=4) == [[1, 4, 6], [3, 5], [0]]
    assert rows_by_level([0, 0], max_group=4) == []


@torch.no_grad()
@pytest.mark.parametrize(("fewer", "more"), [(1, 4), (5, 16), (6, 13), (17, 20)])
def test_row_beside_one_of_more_documents_and_like_levels_reads_as_alone(
    fewer: int, more: int
) -> None:
    network, question = attend_network(), sample_question(2)
    bank = sample_bank(2, more, rows=2)
    mask, prior = bank.mask.clone(), bank.log_prior.clone()
    mask[0, fewer:], prior[0, fewer:] = False, -torch.inf
    own = BankSlice(
        slots=bank.slots[:1, :fewer], mask=mask[:1, :fewer], log_prior=prior[:1, :fewer]
    )
    alone = aggregate(network, question_row(question, 0), own)
    beside = aggregate(network, question, replace(bank, mask=mask, log_prior=prior))
    torch.testing.assert_close(beside.slots[0], alone.slots[0], **TOLERANCE)
    torch.testing.assert_close(beside.document_mass[0, :fewer], alone.document_mass[0], **TOLERANCE)
    assert not beside.document_mass[0, fewer:].any()


@pytest.mark.parametrize("bank_size", BANK_SIZES)
def test_hierarchy_runs_the_levels_it_claims_each_over_one_group_size(bank_size: int) -> None:
    # Defect 1: some sizes never ended. A level is one call, two where its last group is short.
    network = RecordedNetwork(attend_network())
    with torch.no_grad():
        aggregate(network, sample_question(1), sample_bank(1, bank_size))
    assert len(network.banks) <= 2 * num_levels(bank_size, max_group=MAX_GROUP)
    assert all(bank.log_prior.shape[1] <= MAX_GROUP for bank in network.banks)


@pytest.mark.parametrize("rows", [1, 3], ids=["shared bank", "a bank per row"])
@pytest.mark.parametrize("bank_size", [5, 8, 18])
def test_batched_questions_equal_one_at_a_time(bank_size: int, rows: int) -> None:
    # Defect 2: questions of one batch mixed in the bank axis.
    network, question = attend_network(), sample_question(3)
    bank = sample_bank(3, bank_size, rows=rows)
    together = aggregate(network, question, bank)
    for row in range(3):
        alone = aggregate(network, question_row(question, row), bank_row(bank, row))
        torch.testing.assert_close(together.slots[row], alone.slots[0], **TOLERANCE)
        torch.testing.assert_close(together.document_mass[row], alone.document_mass[0], **TOLERANCE)


@pytest.mark.parametrize("rows", [1, 2], ids=["shared bank", "a bank per row"])
def test_question_does_not_read_what_only_its_neighbour_may_read(rows: int) -> None:
    network, question = attend_network(), sample_question(2)
    bank = sample_bank(2, 9, rows=rows)
    prior = bank.log_prior.clone()
    prior[0, 6:] = -torch.inf
    bank = replace(bank, log_prior=prior)
    changed = with_document(bank, 7, torch.ones(VIRTUAL_TOKENS, WIDTH).cumsum(1))
    before, after = aggregate(network, question, bank), aggregate(network, question, changed)
    assert torch.equal(before.slots[0], after.slots[0])
    assert (before.slots[1] - after.slots[1]).abs().max() > 1e-5


def test_padding_of_the_last_group_has_no_influence() -> None:
    # Two groups of 4 and one of 1: level two must equal the same groups written out.
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, 9)
    results = []
    for group in group_ranges(9, max_group=MAX_GROUP):
        part = BankSlice(
            slots=bank.slots[:, group.start : group.stop],
            mask=bank.mask[:, group.start : group.stop],
            log_prior=bank.log_prior[:, group.start : group.stop],
        )
        target = network(question, part, keys_of(network, part))
        results.append((target, part.log_prior.logsumexp(1)))
    level = BankSlice(
        slots=torch.stack([target.slots for target, _ in results], dim=1),
        mask=torch.ones(1, 3, VIRTUAL_TOKENS, dtype=torch.bool),
        log_prior=torch.stack([prior for _, prior in results], dim=1),
    )
    expected = network(question, level, keys_of(network, level))
    actual = aggregate(network, question, bank)
    torch.testing.assert_close(actual.slots, expected.slots, **TOLERANCE)
    within = torch.cat([target.document_mass for target, _ in results], dim=1)
    above = expected.document_mass[:, [0] * 4 + [1] * 4 + [2]]
    torch.testing.assert_close(actual.document_mass, within * above, **TOLERANCE)


@pytest.mark.parametrize("bank_size", BANK_SIZES)
def test_document_mass_sums_to_one(bank_size: int) -> None:
    with torch.no_grad():
        target = aggregate(attend_network(), sample_question(2), sample_bank(2, bank_size))
    assert target.document_mass.shape == (2, bank_size)
    torch.testing.assert_close(target.document_mass.sum(1), torch.ones(2))


def test_excluded_documents_have_no_mass_and_groups_of_them_no_gradient_of_nan() -> None:
    network, question, bank = attend_network(), sample_question(2), sample_bank(2, 10)
    prior = bank.log_prior.clone()
    prior[:, :4] = -torch.inf  # one whole group
    prior[1] = -torch.inf  # one whole row
    prior.requires_grad_()
    target = aggregate(network, question, replace(bank, log_prior=prior))
    target.slots.square().sum().backward()
    assert target.document_mass[0, :4].tolist() == [0.0] * 4
    assert target.document_mass[1].tolist() == [0.0] * 10
    assert target.log_bias[1].tolist() == [-torch.inf] * VIRTUAL_TOKENS
    assert prior.grad is not None
    assert prior.grad.isfinite().all()


def test_slots_of_groups_carry_their_log_bias_to_the_next_level() -> None:
    class Half(AggregationNetwork):
        """Returns the first document's slots, every slot at log-bias log(1/2)."""

        def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
            return AggregationKeys(tensors=(slots,))

        def forward(
            self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
        ) -> TargetModulation:
            slots = bank.slots[:, 0].expand(len(bank.log_prior), -1, -1)
            return TargetModulation(
                slots=slots,
                log_bias=torch.full(slots.shape[:2], 0.5).log(),
                document_mass=bank.log_prior.softmax(-1),
            )

    network = RecordedNetwork(Half())
    aggregate(network, sample_question(1), sample_bank(1, 6))
    first, _, above = network.banks
    assert first.log_bias is None
    assert above.log_bias is not None
    assert above.log_bias.exp().tolist() == [[[0.5] * VIRTUAL_TOKENS] * 2]
    torch.testing.assert_close(above.log_prior.exp().sum(1), torch.ones(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_groups_of_a_shared_bank_are_views_of_it(batch: int) -> None:
    # Defect 6: the bank repeated per row of the batch. Only the short last group is copied.
    network, bank = RecordedNetwork(attend_network()), sample_bank(batch, 14)
    aggregate(network, sample_question(batch), bank)
    whole = [seen for seen in network.banks if len(seen.slots) == 3]
    storages = {seen.slots.untyped_storage().data_ptr() for seen in whole[:batch]}
    assert storages == {bank.slots.untyped_storage().data_ptr()}


def test_documents_are_not_projected_again_at_the_first_level() -> None:
    # Defect 6: only the groups' results, new for every question, may be projected.
    network, bank = attend_network(), sample_bank(1, 16)
    keys = keys_of(network, bank)
    projected: list[int] = []

    def count(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        projected.append(inputs[0].shape[:-1].numel())

    for block in network.reading_blocks():
        block.key.register_forward_hook(count)
        block.value.register_forward_hook(count)
    aggregate_hierarchically(network, sample_question(1), bank, keys, max_group=MAX_GROUP)
    assert projected == [4 * VIRTUAL_TOKENS] * 2 * CONFIG.num_blocks


@pytest.mark.parametrize("max_documents", [1, 4, 7, 18, 100])
@pytest.mark.parametrize("rows", [1, 2], ids=["shared bank", "a bank per row"])
def test_flat_equals_one_forward_for_any_sharding(max_documents: int, rows: int) -> None:
    network, question, bank = attend_network(), sample_question(2), sample_bank(2, 18, rows=rows)
    keys = keys_of(network, bank)
    expected = network(question, bank, keys)
    shards = shard_bank(bank, keys, max_documents=max_documents)
    actual = aggregate_flat(network, question, shards)
    torch.testing.assert_close(actual.slots, expected.slots, **TOLERANCE)
    torch.testing.assert_close(actual.document_mass, expected.document_mass, **TOLERANCE)
    assert torch.equal(actual.log_bias, expected.log_bias)


def test_flat_ignores_excluded_documents_and_rows_without_any() -> None:
    network, question, bank = attend_network(), sample_question(2), sample_bank(2, 6)
    prior = bank.log_prior.clone()
    prior[0, :3] = -torch.inf
    prior[1] = -torch.inf
    bank = replace(bank, log_prior=prior)
    keys = keys_of(network, bank)
    actual = aggregate_flat(network, question, shard_bank(bank, keys, max_documents=3))
    expected = network(question, bank, keys)
    torch.testing.assert_close(actual.slots, expected.slots, **TOLERANCE)
    torch.testing.assert_close(actual.document_mass, expected.document_mass, **TOLERANCE)
    assert actual.log_bias[1].tolist() == [-torch.inf] * VIRTUAL_TOKENS


def test_flat_reads_shards_in_order_and_holds_one_at_a_time() -> None:
    # Defect 7: constant memory needs shards that are loaded when read.
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, 6)
    loaded = LazyShards(shard_bank(bank, keys_of(network, bank), max_documents=2))
    aggregate_flat(network, question, loaded)
    assert loaded.reads == [0, 1, 2] * 2 * CONFIG.num_blocks


def test_flat_reading_of_a_bank_in_memory_is_by_shards_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Defect 7: scores over no more than a group of documents are ever there at once.
    network, question, bank = attend_network(), sample_question(1), sample_bank(1, 18)
    sizes: list[int] = []

    def noted(query: Tensor, shards: Iterable[Shard]) -> OnlineSoftmax:
        held = list(shards)
        sizes.extend(shard.bias.shape[1] for shard in held)
        return attend_online(query, held)

    monkeypatch.setattr("mac_core.networks.hierarchy.attend_online", noted)
    config = replace(CONFIG, reading="flat", max_group=MAX_GROUP)
    aggregate_bank(network, question, bank, keys_of(network, bank), config=config)
    assert sizes == [4, 4, 4, 4, 2] * CONFIG.num_blocks


class LazyShards(list[tuple[BankSlice, AggregationKeys]]):
    """Notes the index of each shard as it is read."""

    def __init__(self, shards: list[tuple[BankSlice, AggregationKeys]]) -> None:
        super().__init__(shards)
        self.reads: list[int] = []

    def __iter__(self) -> Iterator[tuple[BankSlice, AggregationKeys]]:
        for index in range(len(self)):
            self.reads.append(index)
            yield self[index]


def test_empty_bank_is_refused() -> None:
    network, bank = attend_network(), sample_bank(1, 1)
    empty = BankSlice(
        slots=bank.slots[:, :0], mask=bank.mask[:, :0], log_prior=bank.log_prior[:, :0]
    )
    with pytest.raises(ValueError, match="bank_size=0"):
        aggregate(network, sample_question(1), empty)


# Defect 1: a hierarchy of groups of one never ends, whoever asks for it.


@pytest.mark.parametrize("bank_size", [1, 8])
def test_group_of_one_is_refused(bank_size: int) -> None:
    with pytest.raises(ValueError, match="max_group=1 is below 2"):
        num_levels(bank_size, max_group=1)


@pytest.mark.parametrize("bank_size", [1, 8])
def test_aggregation_in_groups_of_one_is_refused(bank_size: int) -> None:
    network, bank = attend_network(), sample_bank(1, bank_size)
    keys = keys_of(network, bank)
    with pytest.raises(ValueError, match="max_group=1 is below 2"):
        aggregate_hierarchically(network, sample_question(1), bank, keys, max_group=1)


def test_configuration_with_groups_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_group=1 is below 2"):
        replace(CONFIG, max_group=1)


@pytest.mark.parametrize("max_group", [2, 3])
@pytest.mark.parametrize("bank_size", [*range(1, 10), 16, 17, 27, 28, 255, 256, 257])
def test_levels_of_small_groups_are_those_that_it_takes(bank_size: int, max_group: int) -> None:
    levels = num_levels(bank_size, max_group=max_group)
    assert max_group ** (levels - 1) < max(bank_size, 2) <= max_group**levels
