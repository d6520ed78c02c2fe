"""Aggregation: question + one group of documents -> target modulation.

The interface every aggregation network keeps, and the paper's network, cross-attention over all
virtual tokens of the group (arXiv 2403.04317, section 3.2). Knows nothing of banks larger than one
group: `hierarchy` builds those. Whatever depends on a document alone comes out of `keys()`, once
per document, and is passed back in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mac_core.config import AggregationConfig
from mac_core.networks.attention import Shard, attend, slot_bias
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationKeys:
    """What an aggregation network precomputes of documents, whatever the question.

    What the tensors mean is the network's own business; all of them lead with the same axes:
    `(virtual_tokens, ...)` for one document, `(documents, virtual_tokens, ...)` from `keys()`,
    `(batch | 1, documents, virtual_tokens, ...)` beside a `BankSlice`.
    """

    tensors: tuple[Tensor, ...]

    @classmethod
    def stack(cls, items: Sequence[AggregationKeys]) -> AggregationKeys:
        """Put items on a new leading axis; shorter ones end in zeros, which the mask must hide.

        Raises:
            ValueError: no items.
        """
        if not items:
            raise ValueError("no aggregation keys to stack")
        columns = zip(*(item.tensors for item in items), strict=True)
        return cls(tensors=tuple(_stack_ragged(column) for column in columns))

    def select(self, rows: int | slice | Tensor) -> AggregationKeys:
        """Rows of the leading axis; an `int` drops the axis, a `slice` is a view."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> AggregationKeys:
        """Apply one function to every tensor."""
        return AggregationKeys(tensors=tuple(function(tensor) for tensor in self.tensors))

    def to(self, device: torch.device | str) -> AggregationKeys:
        return self.map(lambda tensor: tensor.to(device))


class AggregationNetwork(nn.Module, ABC):
    """Reads one group of documents for a batch of questions, each row by itself.

    Kept by every implementation: the order of the documents is without effect; slots whose mask is
    False and documents whose log-prior is -inf are without effect; a row without any real slot
    gives finite slots, `log_bias` -inf and no mass.
    """

    @abstractmethod
    def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
        """Precompute what depends on the documents alone.

        Args:
            slots: `(documents, virtual_tokens, d_modulation)`; further leading axes are kept.
            mask: `(documents, virtual_tokens)`, bool, True where a slot is real.
        """

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor:
        """How well each document answers to one question, before any is read: `(documents,)`.

        Args:
            question: a batch of one.
            keys: by document.

        Raises:
            ValueError: this network does not rank documents.
        """
        raise ValueError(f"{type(self).__name__} has no late interaction")

    @abstractmethod
    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        """Aggregate one group.

        Args:
            keys: of the bank's documents, leading with `(batch | 1, documents)` as `bank.slots`.
        """


class CrossAttentionBlock(nn.Module):
    """One pre-LayerNorm block: target tokens read the slots, then a feed-forward layer."""

    def __init__(self, config: AggregationConfig) -> None:
        super().__init__()
        width, self.head_dim = config.d_modulation, config.head_dim
        inner = config.num_heads * config.head_dim
        self.norm_target = nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.d_feedforward),
            nn.GELU(),
            nn.Linear(config.d_feedforward, width),
        )

    def project_slots(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of each slot, both `(..., virtual_tokens, heads, head_dim)`."""
        normed = self.norm_slots(slots)
        return self._split(self.key(normed)), self._split(self.value(normed))

    def project_target(self, target: Tensor) -> Tensor:
        """Queries `(batch, tokens, heads, head_dim)`."""
        return self._split(self.query(self.norm_target(target)))

    def update(self, target: Tensor, mixed: Tensor) -> Tensor:
        """Add what was read, `(batch, tokens, heads, head_dim)`, to the target's states."""
        target = target + self.out(mixed.flatten(2))
        return target + self.feedforward(target)  # type: ignore[no-any-return]

    def _split(self, states: Tensor) -> Tensor:
        heads = states.shape[-1] // self.head_dim  # no -1: a bank may be empty
        return states.reshape(*states.shape[:-1], heads, self.head_dim)


class AttendAggregation(AggregationNetwork):
    """The paper's network: the question's states read the slots, block after block.

    The question encoder gives `virtual_tokens` states, which is why the result has the shape of one
    document's modulation. A padded state becomes a slot with `log_bias` -inf. Engine thread only.
    """

    def __init__(self, config: AggregationConfig) -> None:
        super().__init__()
        same = config.d_question == config.d_modulation
        self.start: nn.Module = (
            nn.Identity() if same else nn.Linear(config.d_question, config.d_modulation)
        )
        self.blocks = nn.ModuleList(CrossAttentionBlock(config) for _ in range(config.num_blocks))

    def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
        """Key and value of each block, each `(documents, virtual_tokens, heads, head_dim)`."""
        pairs = (block.project_slots(slots) for block in self.reading_blocks())
        return AggregationKeys(tensors=tuple(tensor for pair in pairs for tensor in pair))

    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        target = self.start(question.states)  # (batch, virtual_tokens, d_modulation)
        bias = slot_bias(bank)  # (batch, documents, virtual_tokens)
        masses: list[Tensor] = []
        for index, block in enumerate(self.reading_blocks()):
            mixed, mass = attend(block.project_target(target), block_shard(keys, index, bias))
            target = block.update(target, mixed)
            masses.append(token_mean(question, mass))  # (batch, documents)
        return finish_target(question, target, torch.stack(masses).mean(0))

    def reading_blocks(self) -> Iterator[CrossAttentionBlock]:
        """The blocks by their own type, in the order in which they read."""
        return iter(cast("list[CrossAttentionBlock]", self.blocks))


def block_shard(keys: AggregationKeys, index: int, bias: Tensor) -> Shard:
    """The documents as block `index` of `AttendAggregation` sees them."""
    key, value = keys.tensors[2 * index : 2 * index + 2]
    return Shard(key=key, value=value, bias=bias)


def token_mean(question: QuestionEncoding, mass: Tensor) -> Tensor:
    """Average `(batch, virtual_tokens, documents)` over real tokens: `(batch, documents)`."""
    real = question.mask[..., None].to(mass.dtype)  # (batch, virtual_tokens, 1)
    return (mass * real).sum(1) / real.sum(1).clamp_min(1.0)


def kept_mass(log_bias: Tensor, document: Tensor, *, documents: int) -> Tensor:
    """Each document's share of the weight of the slots kept: `(batch, documents)`.

    Args:
        log_bias: `(batch, virtual_tokens)`; -inf: no slot. A row without any has no mass.
        document: `(batch, virtual_tokens)`, int64, place of each slot's document.
    """
    weights = torch.softmax(log_bias, dim=1).nan_to_num()
    return weights.new_zeros(len(weights), documents).scatter_add(1, document, weights)


def finish_target(
    question: QuestionEncoding, states: Tensor, document_mass: Tensor
) -> TargetModulation:
    """Wrap the last states `(batch, virtual_tokens, d_modulation)`, hiding what is no slot."""
    has_slot = question.mask & (document_mass.detach().sum(1, keepdim=True) > 0)
    log_bias = torch.zeros_like(states[..., 0]).masked_fill(~has_slot, -torch.inf)
    return TargetModulation(slots=states, log_bias=log_bias, document_mass=document_mass)


def _stack_ragged(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.stack` for tensors of one rank whose sizes differ; zeros fill the rest."""
    shape = torch.Size(max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True))
    if all(tensor.shape == shape for tensor in tensors):
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in enumerate(tensors):
        stacked[row][tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked
