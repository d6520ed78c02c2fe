"""Aggregation by selection: keep the slots that the question's tokens ask for.

A learned late interaction (maximum over the question's tokens) scores every slot; the best
`virtual_tokens` of the group stay, their scores becoming an attention bias, which is how the scores
are trained. Nothing is averaged, so names and numbers stay sharp. The hierarchy is exact: the best
of the groups' best are the best of the bank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mac_core.config import AggregationConfig
from mac_core.networks.aggregation import AggregationKeys, AggregationNetwork, kept_mass
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation


class SelectAggregation(AggregationNetwork):
    """Scores from keys cached per document; engine thread only."""

    def __init__(self, config: AggregationConfig, *, num_virtual_tokens: int) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.key = nn.Linear(config.d_modulation, config.d_score, bias=False)
        self.query = nn.Linear(config.d_question, config.d_score, bias=False)
        self.scale = config.d_score**-0.5
        with torch.no_grad():
            self.key.weight.mul_(0.1)  # begin near equal scores: the unbiased prefix

    def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
        """Score keys `(documents, virtual_tokens, d_score)`; further leading axes are kept."""
        return AggregationKeys(tensors=(self.key(slots),))

    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        """Keep the best slots of one group of documents, each row by itself."""
        scores = self._scores(question, bank, keys)  # (batch, documents, virtual_tokens)
        return keep_best(bank.slots, scores, origin=bank.origin, count=self.num_virtual_tokens)

    def _scores(self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys) -> Tensor:
        """Log-score of every slot, float32; -inf where there is none.

        Above the first level `bank.log_bias` holds the scores already.
        """
        if bank.log_bias is not None:
            scores = bank.log_bias.expand(len(bank.log_prior), -1, -1).float()
        else:
            (key,) = keys.tensors
            query = self.query(question.states)  # (batch, tokens, d_score)
            match = torch.einsum("bqd,bksd->bqks", query, key.expand(len(query), -1, -1, -1))
            match = match.float() * self.scale
            match = match.masked_fill(~question.mask[:, :, None, None], -1e9)
            scores = match.amax(1) + bank.log_prior[:, :, None]
        mask = bank.mask.expand(len(scores), -1, -1)
        return scores.masked_fill(~mask, -torch.inf)


def keep_best(
    slots: Tensor, scores: Tensor, *, origin: Tensor | None, count: int
) -> TargetModulation:
    """The `count` best slots of a group, and each document's share of their weight.

    Args:
        slots: `(batch | 1, documents, virtual_tokens, d_modulation)`.
        scores: `(batch, documents, virtual_tokens)`, float32; -inf: no slot.
        origin: `(batch | 1, documents, virtual_tokens, 4)`, see `Origin`; None: slots have none.
    """
    batch, documents, virtual_tokens = scores.shape
    flat = scores.flatten(1)  # (batch, documents * virtual_tokens)
    log_bias, index = flat.topk(min(count, flat.shape[1]), dim=1)  # (batch, kept)

    def kept(columns: Tensor) -> Tensor:
        rows = columns.flatten(1, 2).expand(batch, -1, -1)
        return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))

    return TargetModulation(
        slots=kept(slots),
        log_bias=log_bias,
        document_mass=kept_mass(log_bias, index // virtual_tokens, documents=documents),
        origin=None if origin is None else kept(origin),
        kept=index,
    )
