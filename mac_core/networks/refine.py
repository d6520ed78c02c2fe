"""Aggregation by reading again: the question and each document's slots run through upper layers.

Every document is read with the question by itself, so the order and the number of the others are
without effect; what is gained is that a slot knows what was asked. Each refined slot gets a score,
its *evidence*; over all documents of the group the best `virtual_tokens` slots stay, scores and
documents' log-priors being their attention bias. Nothing is averaged. As with `select`, the best
of the groups' best are the best of the bank, so the hierarchy is exact. The split of an encoder
into a part that does not see the question and one that does is DeFormer's (arXiv 2005.00697).

A document's first slot is its opening mark, which answers nothing: the share of the document's
evidence that lies there is how likely the document does not answer, as BERT's null score in SQuAD
2.0 (arXiv 1810.04805, section 4.3). It compares no two documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mac_core.config import AggregationConfig
from mac_core.networks.aggregation import AggregationKeys, AggregationNetwork
from mac_core.networks.late import LateInteraction, pack_unit, unpack_unit
from mac_core.networks.select import keep_best
from mac_core.networks.stack import EncoderStack
from mac_core.networks.values import BankSlice, QuestionEncoding, TargetModulation

MAX_PARTS = 4  # pairs of like length are read together: less padding
MIN_PART = 8
MATCHED_AT_ONCE = 256  # documents; late interaction with a whole bank takes bounded memory
LENGTH_ROUND = 16  # a matrix product of a shape never seen costs its kernel's set-up again


class RefineAggregation(AggregationNetwork):
    """Upper layers of the encoder over `[question; slots]`, one document at a time."""

    def __init__(
        self,
        config: AggregationConfig,
        encoder_config: Mapping[str, Any],
        *,
        num_virtual_tokens: int,
    ) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.stack = EncoderStack(encoder_config, num_layers=config.num_blocks)
        self.side = nn.Parameter(torch.zeros(2, config.d_modulation))  # question's, document's
        self.evidence = nn.Linear(config.d_modulation, 1)
        nn.init.normal_(self.evidence.weight, std=0.02)
        nn.init.zeros_(self.evidence.bias)
        self.late: LateInteraction | None = None
        if config.d_late:
            self.late = LateInteraction(
                d_modulation=config.d_modulation,
                d_question=config.d_question,
                d_late=config.d_late,
            )

    def keys(self, slots: Tensor, mask: Tensor) -> AggregationKeys:
        """Late-interaction keys, int8, if there are any; reading takes the slots themselves."""
        if self.late is None:
            return AggregationKeys(tensors=())
        return AggregationKeys(tensors=(pack_unit(self.late.keys(slots)),))

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor:
        """Late-interaction scores, `(documents,)`."""
        if self.late is None:
            return super().match(question, keys)
        if len(keys) > MATCHED_AT_ONCE:
            parts = range(0, len(keys), MATCHED_AT_ONCE)
            return torch.cat([self.match(question, keys[p : p + MATCHED_AT_ONCE]) for p in parts])
        scores: Tensor = self.late(question, *stack_late_keys(keys))
        return scores[0]

    def forward(
        self, question: QuestionEncoding, bank: BankSlice, keys: AggregationKeys
    ) -> TargetModulation:
        """Refine, score and keep; above the first level the scores are there and slots stay."""
        batch, documents = bank.log_prior.shape
        mask = bank.mask.expand(batch, -1, -1)
        log_null: Tensor | None = None  # the level below has said it
        if bank.log_bias is not None:
            slots = bank.slots.expand(batch, -1, -1, -1)
            scores = bank.log_bias.expand(batch, -1, -1).float()
        else:
            mask = mask & (bank.log_prior > -torch.inf)[..., None]
            slots = self._refine(question, bank.slots, mask)
            evidence = self.evidence(slots).squeeze(-1).float()
            log_null = null_share(evidence, mask)
            scores = evidence + bank.log_prior[:, :, None]
        scores = scores.masked_fill(~mask, -torch.inf)  # (batch, documents, virtual_tokens)
        kept = keep_best(slots, scores, origin=bank.origin, count=self.num_virtual_tokens)
        return replace(kept, log_null=log_null)

    def _refine(self, question: QuestionEncoding, slots: Tensor, mask: Tensor) -> Tensor:
        """`(batch, documents, virtual_tokens, d_modulation)` with the question in sight.

        Args:
            slots: `(batch | 1, documents, virtual_tokens, d_modulation)`; a shared bank is not
                copied for each question.
            mask: `(batch, documents, virtual_tokens)`.
        """
        _, documents, virtual_tokens, width = slots.shape
        batch = len(mask)
        flat_mask = mask.flatten(0, 1)  # (batch * documents, virtual_tokens)
        lengths = flat_mask.sum(1)
        order = lengths.argsort()
        order = order[lengths[order] > 0]
        flat = slots.flatten(0, 1)  # ((batch | 1) * documents, virtual_tokens, d_modulation)
        refined = flat.new_zeros(batch * documents, virtual_tokens, width)
        parts = max(1, min(MAX_PARTS, len(order) // MIN_PART))
        states = question.states + self.side[0]
        for pairs in order.chunk(parts) if len(order) else ():
            longest = int(lengths[pairs[-1]])
            longest = min(-(-longest // LENGTH_ROUND) * LENGTH_ROUND, virtual_tokens)
            rows = pairs // documents
            both = torch.cat(
                [states[rows], flat[pairs % len(flat), :longest] + self.side[1]], dim=1
            )
            real = torch.cat([question.mask[rows], flat_mask[pairs, :longest]], dim=1)
            read = self.stack(both, real)[:, states.shape[1] :]  # (pairs, longest, d_modulation)
            refined = refined.to(read.dtype)
            refined = refined.index_put(
                (pairs[:, None], torch.arange(longest, device=pairs.device)), read
            )
        return refined.reshape(batch, documents, virtual_tokens, width)


def null_share(evidence: Tensor, mask: Tensor) -> Tensor:
    """Log of the first slot's share of each document's evidence: `(batch, documents)`.

    Args:
        evidence: `(batch, documents, virtual_tokens)`; mask: bool, the same shape. A document
            without slots answers nothing: 0.
    """
    real = evidence.masked_fill(~mask, torch.finfo(evidence.dtype).min)  # finite, for gradients
    share = torch.log_softmax(real, dim=-1)[..., 0]
    return share.masked_fill(~mask.any(-1), 0.0)


def stack_late_keys(keys: Sequence[AggregationKeys]) -> tuple[Tensor, Tensor]:
    """Late-interaction keys as `(documents, virtual_tokens, d_late)`, float32, and their mask."""
    packed = [key.tensors[0] for key in keys]  # by document (virtual_tokens, d_late)
    lengths = torch.tensor([len(tensor) for tensor in packed])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    stacked = unpack_unit(pad_sequence(packed, batch_first=True))
    return stacked, mask.to(stacked.device)
