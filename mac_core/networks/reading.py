"""The base LM reading on: what it has in its cache, and how new tokens join it.

Training and generation go through the same functions, so that what is trained is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from mac_core.networks.base_lm import BaseLM, attention_bias
from mac_core.networks.prompt import Prompt
from mac_core.networks.values import Prefix


@dataclass(slots=True, kw_only=True)
class Context:
    """Rows in flight: the cache and what new tokens may see of it. Engine thread only."""

    cache: DynamicCache
    bias: Tensor  # (batch, cached), added to attention scores; -inf: masked
    position: Tensor  # (batch,), the next token's position, counted over text only

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone; the others have ended."""
        self.cache.batch_select_indices(rows)
        self.bias, self.position = self.bias[rows], self.position[rows]


def start(base_lm: BaseLM, *, batch: int, prefix: Prefix | None) -> Context:
    """Begin a context on a prefix or on nothing; a prefix takes no positions."""
    device = base_lm.input_embeddings.weight.device
    bias = torch.zeros(batch, 0, device=device) if prefix is None else prefix.log_bias.float()
    return Context(
        cache=base_lm.cache(prefix),
        bias=bias,
        position=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def read_prompt(base_lm: BaseLM, context: Context, prompt: Prompt) -> Tensor:
    """Read prompts into the context: hidden states `(batch, tokens, d_model)`."""
    no_answer = (prompt.ids[:, :0], prompt.mask[:, :0])
    return read_with_answer(base_lm, context, prompt, no_answer)


def read_with_answer(
    base_lm: BaseLM, context: Context, prompt: Prompt, answer: tuple[Tensor, Tensor]
) -> Tensor:
    """Read prompts with answers behind them, teacher-forced: `(batch, tokens, d_model)`.

    Args:
        answer: ids and mask `(batch, answer_tokens)`, right-padded.
    """
    ids, mask, positions, open_mask = prompt.followed_by(*answer)
    hidden = _read(base_lm, context, ids, mask, positions, open_mask)
    context.position = prompt.next_position + answer[1].sum(1)
    return hidden


def read_next(base_lm: BaseLM, context: Context, ids: Tensor) -> Tensor:
    """Read one more token per row, `(batch,)`: hidden states `(batch, 1, d_model)`."""
    mask = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
    hidden = _read(base_lm, context, ids[:, None], mask, context.position[:, None], None)
    context.position = context.position + 1
    return hidden


def _read(
    base_lm: BaseLM,
    context: Context,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    open_mask: Tensor | None,
) -> Tensor:
    """Read right-padded new tokens `(batch, tokens)` into the context."""
    hidden = base_lm.hidden(
        ids,
        positions=positions.clamp_max(base_lm.max_positions - 1),
        attention_bias=attention_bias(
            cached_bias=context.bias,
            token_mask=mask,
            open_mask=open_mask,
            dtype=base_lm.bias_dtype,
        ),
        cache=context.cache,
    )
    unseen = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    context.bias = torch.cat([context.bias, unseen], dim=1)
    return hidden
