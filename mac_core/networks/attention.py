"""Multi-head attention of target tokens over documents' slots, in one piece or by shards.

No positions: a bank is a set. Keys are read where they lie, head by head: nothing is copied, and
only one head's scores are alive at a time. The sharded form is the online softmax (Milakov and
Gimelshein, arXiv 1805.02867): exact, with memory that does not grow with the bank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mac_core.networks.values import BankSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Some documents as one attention block sees them."""

    key: Tensor  # (batch | 1, documents, virtual_tokens, heads, head_dim)
    value: Tensor  # (batch | 1, documents, virtual_tokens, heads, head_dim)
    bias: Tensor  # (batch, documents, virtual_tokens), added to scores; -inf: not there


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSoftmax:
    """What is known after some of the shards; float32, one entry per (batch, tokens, heads)."""

    maximum: Tensor  # (batch, tokens, heads), finite
    denominator: Tensor  # (batch, tokens, heads), sum of exp(score - maximum)
    total: Tensor  # (batch, tokens, heads, head_dim), values weighted by the same

    def merge(self, other: OnlineSoftmax) -> OnlineSoftmax:
        maximum = torch.maximum(self.maximum, other.maximum)
        mine, its = (self.maximum - maximum).exp(), (other.maximum - maximum).exp()
        return OnlineSoftmax(
            maximum=maximum,
            denominator=self.denominator * mine + other.denominator * its,
            total=self.total * mine[..., None] + other.total * its[..., None],
        )

    @property
    def mixed(self) -> Tensor:
        """The attention's output `(batch, tokens, heads, head_dim)`; zero where no slot is real."""
        return self.total / self._positive_denominator[..., None]

    @property
    def log_normalizer(self) -> Tensor:
        """`(batch, tokens, heads)`, finite: exp(score - this) is the softmax."""
        return self.maximum + self._positive_denominator.log()

    @property
    def _positive_denominator(self) -> Tensor:
        # At least 1 where any slot is real (the maximum's own term), 0 where none is.
        return self.denominator.clamp_min(torch.finfo(self.denominator.dtype).tiny)


def slot_bias(bank: BankSlice) -> Tensor:
    """What is added to a slot's score: `(batch, documents, virtual_tokens)`, -inf where it is not.

    The document's log-prior, and above the first level of a hierarchy the slot's own log-bias.
    """
    bias = bank.log_prior[..., None].float()
    if bank.log_bias is not None:
        bias = bias + bank.log_bias
    return torch.where(bank.mask, bias, -torch.inf)


def attend(query: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """Attend to all slots of a shard at once.

    Args:
        query: `(batch, tokens, heads, head_dim)`.

    Returns:
        The weighted values `(batch, tokens, heads, head_dim)`, and the weight of each document
        `(batch, tokens, documents)`, averaged over heads; zero in a row without real slots.
    """
    has_slot = (shard.bias > -torch.inf).flatten(1).any(1)  # (batch,)
    # Such a row's bias becomes 0: a softmax of nothing but -inf is NaN, in its gradient too.
    bias = shard.bias.masked_fill(~has_slot[:, None, None], 0.0)
    shard = Shard(key=shard.key, value=shard.value, bias=bias)
    mixed, mass = [], query.new_zeros((), dtype=torch.float32)
    for head in range(query.shape[2]):
        weights = torch.softmax(_head_scores(query, shard, head), dim=-1)
        weights = weights * has_slot[:, None, None]  # (batch, tokens, slots)
        mixed.append(_weigh(weights, shard, head))
        mass = mass + _by_document(weights, shard)
    return torch.stack(mixed, dim=2), mass / query.shape[2]


def attend_online(query: Tensor, shards: Iterable[Shard]) -> OnlineSoftmax:
    """Attend to shard after shard; the end result is that of `attend` over all of them.

    Raises:
        ValueError: no shards.
    """
    softmax: OnlineSoftmax | None = None
    for shard in shards:
        part = _shard_softmax(query, shard)
        softmax = part if softmax is None else softmax.merge(part)
    if softmax is None:
        raise ValueError("no shards to attend to")
    return softmax


def shard_mass(query: Tensor, shard: Shard, log_normalizer: Tensor) -> Tensor:
    """Weight of each document of one shard, as `attend` gives it: `(batch, tokens, documents)`.

    Args:
        log_normalizer: `(batch, tokens, heads)`, over all shards.
    """
    mass = query.new_zeros((), dtype=torch.float32)
    for head in range(query.shape[2]):
        scores = _head_scores(query, shard, head)
        mass = mass + _by_document((scores - log_normalizer[:, :, head, None]).exp(), shard)
    return mass / query.shape[2]


def _shard_softmax(query: Tensor, shard: Shard) -> OnlineSoftmax:
    maxima, denominators, totals = [], [], []
    for head in range(query.shape[2]):
        scores = _head_scores(query, shard, head)  # (batch, tokens, slots)
        # Any finite reference is exact, so it needs no gradient; -inf would make -inf - -inf.
        maximum = scores.detach().amax(-1).clamp_min(torch.finfo(scores.dtype).min)
        weights = (scores - maximum[..., None]).exp()
        maxima.append(maximum)
        denominators.append(weights.sum(-1))
        totals.append(_weigh(weights, shard, head).float())
    return OnlineSoftmax(
        maximum=torch.stack(maxima, dim=-1),
        denominator=torch.stack(denominators, dim=-1),
        total=torch.stack(totals, dim=2),
    )


def _head_scores(query: Tensor, shard: Shard, head: int) -> Tensor:
    """Biased scores of one head, float32: `(batch, tokens, documents * virtual_tokens)`."""
    batch, tokens, _, head_dim = query.shape
    key = shard.key[..., head, :].flatten(1, 2)  # (batch | 1, slots, head_dim), a view
    # Questions that share their documents are one long row of queries: keys are not expanded.
    rows = (query[:, :, head] * head_dim**-0.5).reshape(len(key), -1, head_dim)
    scores: Tensor = (rows @ key.mT).float().reshape(batch, tokens, -1)
    return scores + shard.bias.flatten(1)[:, None, :]


def _weigh(weights: Tensor, shard: Shard, head: int) -> Tensor:
    """Values of one head, summed by weight: `(batch, tokens, head_dim)`."""
    value = shard.value[..., head, :].flatten(1, 2)  # (batch | 1, slots, head_dim), a view
    rows = weights.to(value.dtype).reshape(len(value), -1, weights.shape[-1])
    mixed: Tensor = rows @ value
    return mixed.reshape(*weights.shape[:2], -1)


def _by_document(weights: Tensor, shard: Shard) -> Tensor:
    return weights.reshape(*weights.shape[:2], *shard.bias.shape[1:]).sum(-1)
