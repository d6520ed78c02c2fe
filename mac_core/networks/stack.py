"""Layers of a BERT encoder that run on hidden states: the part of an encoder above some depth.

The layers are transformers' own. Knows neither embeddings nor positions: the states bring them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.bert.modeling_bert import BertLayer

AttentionKind = Literal["sdpa", "eager"]


class EncoderStack(nn.Module):
    """`num_layers` post-norm layers, every position seeing every real one. Engine thread only."""

    def __init__(self, encoder_config: Mapping[str, Any], *, num_layers: int) -> None:
        super().__init__()
        values = dict(encoder_config)
        self._config = AutoConfig.for_model(values.pop("model_type"), **values)
        self._config.is_decoder = False
        self.set_attn_implementation("sdpa")
        self.layers = nn.ModuleList(BertLayer(self._config) for _ in range(num_layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self._config.initializer_range)
                nn.init.zeros_(module.bias)

    def set_attn_implementation(self, kind: AttentionKind) -> None:
        """Fused attention or the written-out one, as transformers' models name it."""
        self._config._attn_implementation = kind

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Run the layers.

        Args:
            states: `(batch, tokens, d_encoder)`.
            mask: `(batch, tokens)`, bool, True where a token is real.

        Returns:
            `(batch, tokens, d_encoder)`; positions that are not real hold nothing of use.
        """
        dtype = states.dtype
        if torch.is_autocast_enabled(states.device.type):
            dtype = torch.get_autocast_dtype(states.device.type)
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        bias = bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]
        bias = bias.expand(-1, 1, states.shape[1], -1)  # (batch, 1, tokens, tokens)
        for layer in self.layers:
            states = layer(states, bias)
        return states
