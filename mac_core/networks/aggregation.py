"""Aggregation: question + one group of documents -> target modulation.

The interface every aggregation network keeps, and the paper's network, cross-attention over all
virtual tokens of the group (arXiv 2403.04317, section 3.2). Knows nothing of banks larger than one
group: `hierarchy` builds those. Whatever depends on a document alone comes out of `keys()`, once
per document, and is passed back in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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

    @abstractmethod
    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        """Aggregate one group.

        Args:
            keys: of the bank's documents, leading with `(batch | 1, documents)` as `bank.slots`.
        """


def _stack_ragged(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.stack` for tensors of one rank whose sizes differ; zeros fill the rest."""
    shape = torch.Size(max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True))
    if all(tensor.shape == shape for tensor in tensors):
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in enumerate(tensors):
        stacked[row][tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked
