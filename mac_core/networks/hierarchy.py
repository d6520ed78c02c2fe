"""Banks larger than one group: aggregate groups, then their results; or read all of it exactly.

The hierarchy splits the *bank* into groups of at most `max_group` documents (M), aggregates each
with the same question and takes the results as the next bank: at most ceil(log_M N) levels
(arXiv 2403.04317, section 3.3). It serves any aggregation network. Rows never meet, and documents
that all rows share are read where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.config import AggregationConfig
from mac_core.networks.aggregation import (
    AggregationKeys,
    AggregationNetwork,
    AttendAggregation,
    block_shard,
    finish_target,
    kept_mass,
    token_mean,
)
from mac_core.networks.attention import attend_online, shard_mass, slot_bias
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation

KeyedBank = tuple[BankSlice, AggregationKeys]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What one level says of the bank that it reads."""

    mass: Tensor  # (batch, documents), within its group
    log_null: Tensor | None  # (batch, documents), see `TargetModulation`
    kept: Tensor | None  # (batch, groups, virtual_tokens), within its group, see the same

    @classmethod
    def joined(cls, parts: Sequence[Level], *, dim: int) -> Level:
        """Parts of the rows (0) or of the documents (1) in their order."""
        nulls = [part.log_null for part in parts if part.log_null is not None]
        kept = [part.kept for part in parts if part.kept is not None]
        return cls(
            mass=torch.cat([part.mass for part in parts], dim=dim),
            log_null=torch.cat(nulls, dim=dim) if nulls else None,
            kept=torch.cat(kept, dim=dim) if kept else None,
        )

    def first(self, documents: int) -> Level:
        """Without what is said of the padding behind the documents."""
        return replace(
            self,
            mass=self.mass[:, :documents],
            log_null=None if self.log_null is None else self.log_null[:, :documents],
        )


def group_ranges(bank_size: int, *, max_group: int) -> list[range]:
    """Split the bank into groups of at most `max_group` documents, each document once.

    Raises:
        ValueError: `max_group` below 1.
    """
    if max_group < 1:
        raise ValueError(f"max_group={max_group} is below 1")
    starts = range(0, bank_size, max_group)
    return [range(start, min(start + max_group, bank_size)) for start in starts]


def num_levels(bank_size: int, *, max_group: int) -> int:
    """How often a bank is aggregated until one modulation is left: ceil(log_M N), at least 1.

    Raises:
        ValueError: an empty bank, or `max_group` below 2, for which there would be no end.
    """
    _check(bank_size, max_group)
    for level in range(1, bank_size.bit_length() + 1):  # even groups of two need no more
        if bank_size <= max_group:
            return level
        bank_size = -(-bank_size // max_group)
    raise RuntimeError(f"groups of {max_group} leave {bank_size} modulations however often")


def rows_by_level(bank_sizes: Sequence[int], *, max_group: int) -> list[list[int]]:
    """Rows whose banks are aggregated equally often; a row of an empty bank is in no part.

    Rows of one part read as they would alone: past a row's own groups there is only padding.

    Raises:
        ValueError: `max_group` below 2.
    """
    parts = dict[int, list[int]]()
    for row, bank_size in enumerate(bank_sizes):
        if bank_size:
            parts.setdefault(num_levels(bank_size, max_group=max_group), []).append(row)
    return [parts[levels] for levels in sorted(parts)]


def aggregate_bank(
    network: AggregationNetwork,
    question: QuestionEncoding,
    bank: BankSlice,
    keys: AggregationKeys,
    *,
    config: AggregationConfig,
) -> TargetModulation:
    """Aggregate a bank of any size in the way that `config` names.

    Raises:
        ValueError: an empty bank; the caller answers without a prefix.
    """
    if config.reading == "flat" and isinstance(network, AttendAggregation):
        shards = shard_bank(bank, keys, max_documents=config.max_group)
        return aggregate_flat(network, question, shards)
    return aggregate_hierarchically(network, question, bank, keys, max_group=config.max_group)


def aggregate_hierarchically(
    network: AggregationNetwork,
    question: QuestionEncoding,
    bank: BankSlice,
    keys: AggregationKeys,
    *,
    max_group: int,
) -> TargetModulation:
    """Aggregate a bank of any size, level by level.

    A group counts at the next level by the summed prior of its documents. A document's mass is its
    share of the slots that the top keeps; where slots are mixtures, its mass within its group times
    the group's mass above. All rows have the levels of the bank's width: see `rows_by_level`.

    Raises:
        ValueError: an empty bank (the caller answers without a prefix), or `max_group` below 2.
    """
    documents = bank.log_prior.shape[1]
    _check(documents, max_group)
    if documents <= max_group:
        target: TargetModulation = network(question, bank, keys)
        return target
    groups, below = _aggregate_groups(network, question, (bank, keys), max_group)
    above = aggregate_hierarchically(
        network, question, groups, network.keys(groups.slots, groups.mask), max_group=max_group
    )
    above = replace(above, log_null=below.log_null)
    if above.kept is None or below.kept is None:
        group_mass = above.document_mass.repeat_interleave(max_group, dim=1)[:, :documents]
        return replace(above, document_mass=below.mass * group_mass)
    virtual_tokens = bank.slots.shape[2]
    group = torch.arange(below.kept.shape[1], device=below.kept.device)
    places = below.kept + (group * max_group * virtual_tokens)[:, None]  # in the whole bank
    kept = places.flatten(1).gather(1, above.kept)  # (batch, virtual_tokens)
    kept = kept.clamp_max(documents * virtual_tokens - 1)  # no slot of the last group's padding
    mass = kept_mass(above.log_bias, kept // virtual_tokens, documents=documents)
    return replace(above, document_mass=mass, kept=kept)


def shard_bank(bank: BankSlice, keys: AggregationKeys, *, max_documents: int) -> list[KeyedBank]:
    """Cut a bank that lies in memory into shards of at most `max_documents`, all of them views."""
    ranges = group_ranges(bank.log_prior.shape[1], max_group=max_documents)
    return [_span((bank, keys), part.start, part.stop) for part in ranges]


def aggregate_flat(
    network: AttendAggregation, question: QuestionEncoding, shards: Sequence[KeyedBank]
) -> TargetModulation:
    """Read the whole bank at once, exactly, one shard in memory at a time.

    The shards are read twice per block, for the attention and for the documents' mass, so a
    sequence that loads its shards when indexed keeps memory constant.

    Raises:
        ValueError: no shards.
    """
    target = network.start(question.states)  # (batch, virtual_tokens, d_modulation)
    masses: list[Tensor] = []
    for index, block in enumerate(network.reading_blocks()):
        query = block.project_target(target)
        softmax = attend_online(
            query, (block_shard(keys, index, slot_bias(bank)) for bank, keys in shards)
        )
        target = block.update(target, softmax.mixed.to(target.dtype))
        mass = [
            shard_mass(
                query, block_shard(keys, index, slot_bias(bank)), softmax.log_normalizer
            )  # (batch, virtual_tokens, documents of this shard)
            for bank, keys in shards
        ]
        masses.append(torch.cat([token_mean(question, part) for part in mass], dim=1))
    return finish_target(question, target, torch.stack(masses).mean(0))


def _aggregate_groups(
    network: AggregationNetwork, question: QuestionEncoding, keyed: KeyedBank, max_group: int
) -> tuple[BankSlice, Level]:
    """One level: the groups' results as a bank of `(batch, groups)`, and what else it says."""
    bank = keyed[0]
    batch, documents = bank.log_prior.shape
    if batch > 1 and len(bank.slots) == 1:
        # Groups and questions on one axis would need a copy of the bank per question; one question
        # at a time, the groups of a shared bank are a view of it.
        rows = [
            _aggregate_groups(network, _question_row(question, row), _row(keyed, row), max_group)
            for row in range(batch)
        ]
        joined = Level.joined([below for _, below in rows], dim=0)
        return _join([groups for groups, _ in rows], dim=0), joined
    whole = documents // max_group * max_group
    parts = [_aggregate_fold(network, question, _span(keyed, 0, whole), max_group)]
    if whole < documents:  # only the last, short group is padded, hence copied
        rest = _pad_documents(_span(keyed, whole, documents), max_group - (documents - whole))
        parts.append(_aggregate_fold(network, question, rest, max_group))
    below = Level.joined([below for _, below in parts], dim=1).first(documents)
    return _join([groups for groups, _ in parts], dim=1), below


def _aggregate_fold(
    network: AggregationNetwork, question: QuestionEncoding, keyed: KeyedBank, max_group: int
) -> tuple[BankSlice, Level]:
    """As `_aggregate_groups`, for whole groups and a bank of its own for each row."""
    batch, documents = keyed[0].log_prior.shape
    groups = documents // max_group
    bank, keys = _map(
        keyed,
        lambda t: t.expand(batch, *t.shape[1:]).reshape(batch * groups, max_group, *t.shape[2:]),
    )
    target: TargetModulation = network(_repeat_rows(question, groups), bank, keys)
    results = BankSlice(
        slots=target.slots.reshape(batch, groups, *target.slots.shape[1:]),
        mask=(target.log_bias > -torch.inf).reshape(batch, groups, -1),
        log_prior=_group_prior(bank).reshape(batch, groups),
        log_bias=target.log_bias.reshape(batch, groups, -1),
        origin=None
        if target.origin is None
        else target.origin.reshape(batch, groups, *target.origin.shape[1:]),
    )
    null = target.log_null
    return results, Level(
        mass=target.document_mass.reshape(batch, documents),
        log_null=None if null is None else null.reshape(batch, documents),
        kept=None if target.kept is None else target.kept.reshape(batch, groups, -1),
    )


def _group_prior(bank: BankSlice) -> Tensor:
    """Log of the summed prior of a group's real documents: `(batch,)`, -inf for none."""
    real = bank.mask.any(-1) & (bank.log_prior > -torch.inf)  # (batch, documents)
    floor = torch.finfo(bank.log_prior.dtype).min  # finite: -inf alone has no gradient but NaN
    total = torch.logsumexp(bank.log_prior.masked_fill(~real, floor), dim=-1)
    return total.masked_fill(~real.any(-1), -torch.inf)


def _map(keyed: KeyedBank, function: Callable[[Tensor], Tensor]) -> KeyedBank:
    """Apply one function to every tensor of a bank and of its keys."""
    bank, keys = keyed
    mapped = BankSlice(
        slots=function(bank.slots),
        mask=function(bank.mask),
        log_prior=function(bank.log_prior),
        log_bias=None if bank.log_bias is None else function(bank.log_bias),
        origin=None if bank.origin is None else function(bank.origin),
    )
    return mapped, keys.map(function)


def _span(keyed: KeyedBank, start: int, stop: int) -> KeyedBank:
    return _map(keyed, lambda tensor: tensor[:, start:stop])


def _row(keyed: KeyedBank, row: int) -> KeyedBank:
    return _map(keyed, lambda tensor: tensor if len(tensor) == 1 else tensor[row : row + 1])


def _pad_documents(keyed: KeyedBank, amount: int) -> KeyedBank:
    """Append `amount` documents that are not there."""
    bank, keys = _map(keyed, lambda t: F.pad(t, (0, 0) * (t.ndim - 2) + (0, amount)))
    real = bank.log_prior.shape[1] - amount
    absent = torch.arange(bank.log_prior.shape[1], device=bank.log_prior.device) >= real
    return replace(bank, log_prior=bank.log_prior.masked_fill(absent, -torch.inf)), keys


def _question_row(question: QuestionEncoding, row: int) -> QuestionEncoding:
    return _map_question(question, lambda tensor: tensor[row : row + 1])


def _repeat_rows(question: QuestionEncoding, times: int) -> QuestionEncoding:
    return _map_question(question, lambda tensor: tensor.repeat_interleave(times, dim=0))


def _map_question(
    question: QuestionEncoding, function: Callable[[Tensor], Tensor]
) -> QuestionEncoding:
    return QuestionEncoding(
        states=function(question.states),
        mask=function(question.mask),
        selection_query=function(question.selection_query),
    )


def _join(banks: Sequence[BankSlice], *, dim: int) -> BankSlice:
    """Concatenate banks that have the same fields along rows (0) or documents (1)."""
    biases = [bank.log_bias for bank in banks if bank.log_bias is not None]
    origins = [bank.origin for bank in banks if bank.origin is not None]
    return BankSlice(
        slots=torch.cat([bank.slots for bank in banks], dim),
        mask=torch.cat([bank.mask for bank in banks], dim),
        log_prior=torch.cat([bank.log_prior for bank in banks], dim),
        log_bias=torch.cat(biases, dim) if biases else None,
        origin=torch.cat(origins, dim) if origins else None,
    )


def _check(bank_size: int, max_group: int) -> None:
    if bank_size < 1:
        raise ValueError("bank_size=0: an empty bank has no target modulation")
    if max_group < 2:
        raise ValueError(f"max_group={max_group} is below 2: the hierarchy would not end")
