"""The base LM reading on: what it has in its cache, and how new tokens join it.

Training and generation go through the same two functions, so that what is trained is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from mac_core.networks.base_lm import BaseLM, attention_bias
from mac_core.networks.values import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class TextState:
    """Document text that the base LM has read by itself, before any prefix or question."""

    ids: Tensor  # (batch, tokens)
    mask: Tensor  # (batch, tokens), bool
    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens, head_dim)
    values: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens, head_dim)
    hidden: Tensor  # (batch, tokens, d_model)

    def rows(self, index: Tensor) -> TextState:
        """The state for the given rows; one row may serve many questions."""
        return TextState(
            ids=self.ids[index],
            mask=self.mask[index],
            keys=tuple(key[index] for key in self.keys),
            values=tuple(value[index] for value in self.values),
            hidden=self.hidden[index],
        )


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


def read_text(base_lm: BaseLM, ids: Tensor, mask: Tensor) -> TextState:
    """Let the base LM read document text alone, so that the result serves any question.

    Args:
        ids, mask: `(batch, tokens)`, right-padded.
    """
    context = start(base_lm, batch=len(ids), prefix=None, text=None, like=ids)
    hidden = read(base_lm, context, ids, mask)
    layers = [(layer.keys, layer.values) for layer in context.cache.layers]
    return TextState(
        ids=ids,
        mask=mask,
        keys=tuple(key for key, _ in layers),
        values=tuple(value for _, value in layers),
        hidden=hidden,
    )


def start(
    base_lm: BaseLM, *, batch: int, prefix: Prefix | None, text: TextState | None, like: Tensor
) -> Context:
    """Open a context on a prefix, on text already read, on both, or on nothing.

    The text does not see the prefix; the question sees both. Only text takes positions.
    """
    cache = base_lm.cache(prefix)
    device = like.device
    bias = torch.zeros(batch, 0, device=device) if prefix is None else prefix.log_bias.float()
    position = torch.zeros(batch, dtype=torch.int64, device=device)
    if text is not None:
        for layer, (key, value) in enumerate(zip(text.keys, text.values, strict=True)):
            cache.update(key, value, layer)
        bias = torch.cat([bias, _bias_of(text.mask)], dim=1)
        position = position + text.mask.sum(1)
    return Context(cache=cache, bias=bias, position=position)


def read(base_lm: BaseLM, context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """Read right-padded new tokens into the context: hidden states `(batch, tokens, d_model)`."""
    steps = torch.arange(ids.shape[1], device=ids.device)
    positions = (context.position[:, None] + steps).clamp_max(base_lm.max_positions - 1)
    hidden = base_lm.hidden(
        ids,
        positions=positions,
        attention_bias=attention_bias(
            cached_bias=context.bias, token_mask=mask, dtype=base_lm.bias_dtype
        ),
        cache=context.cache,
    )
    context.bias = torch.cat([context.bias, _bias_of(mask)], dim=1)
    context.position = context.position + mask.sum(1)
    return hidden


def _bias_of(mask: Tensor) -> Tensor:
    """0 where `mask` holds, -inf elsewhere, float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
