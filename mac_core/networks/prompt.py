"""What the base LM reads before it answers: document text, if there is any, and the question.

Causal LMs take text and question as one sequence. Where the prompt is read both ways, the order
within it is without meaning, positions alone count: the question's begin at 0 in every mode, the
text's stand where they are out of the answer's way, and the answer goes on after the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ids = tuple[Tensor, Tensor]  # ids (batch, tokens) and their mask, right-padded
PromptAttention = Literal["causal", "bidirectional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A batch of prompts, right-padded; the answer begins after each row's last token."""

    ids: Tensor  # (batch, tokens)
    mask: Tensor  # (batch, tokens), bool
    positions: Tensor  # (batch, tokens)
    is_text: Tensor  # (batch, tokens), bool: document text, which may be copied
    next_position: Tensor  # (batch,), of the answer's first token
    both_ways: bool

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    @property
    def has_text(self) -> bool:
        return bool(self.is_text.any())

    def followed_by(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each row with an answer behind it: ids, mask, positions, and what is read both ways.

        Args:
            ids, mask: `(batch, answer_tokens)`, right-padded.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        joined_ids, joined_mask = join((self.ids, self.mask), (ids, mask))
        positions, _ = join(
            (self.positions, self.mask), (self.next_position[:, None] + steps, mask)
        )
        return joined_ids, joined_mask, positions, self._open(joined_mask)

    def _open(self, mask: Tensor) -> Tensor:
        """`(batch, tokens)`, bool: the prompt's own tokens, where they see each other both ways."""
        if not self.both_ways:
            return torch.zeros_like(mask)
        return torch.arange(mask.shape[1], device=mask.device) < self.lengths[:, None]


def make_prompt(
    question: Ids, text: Ids | None, *, attention: PromptAttention, text_position: int
) -> Prompt:
    """Put framed text before framed questions; a row whose text is empty is its question.

    Args:
        text_position: where the text's positions begin when the prompt is read both ways.
    """
    if text is None:
        text = (question[0][:, :0], question[1][:, :0])
    ids, mask = join(text, question)
    num_text = text[1].sum(1, keepdim=True)  # (batch, 1)
    places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    is_text = places < num_text
    both_ways = attention == "bidirectional"
    length = question[1].sum(1)
    if both_ways:
        places = torch.where(is_text, places + text_position, places - num_text)
    else:
        length = length + num_text.squeeze(1)
    return Prompt(
        ids=ids,
        mask=mask,
        positions=places,
        is_text=is_text,
        next_position=length,
        both_ways=both_ways,
    )


def join(left: Ids, right: Ids) -> Ids:
    """Lay each right-padded row of `right` directly behind its row of `left`."""
    (left_ids, left_mask), (right_ids, right_mask) = left, right
    width = left_ids.shape[1] + right_ids.shape[1]
    where = left_mask.sum(1, keepdim=True) + torch.arange(
        right_ids.shape[1], device=right_ids.device
    )
    ids = right_ids.new_zeros(len(right_ids), width)
    ids[:, : left_ids.shape[1]] = left_ids * left_mask
    ids = ids.scatter(1, where, right_ids * right_mask)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, : left_ids.shape[1]] = left_mask
    mask = mask.scatter(1, where, right_mask)
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    return ids[:, :longest], mask[:, :longest]
