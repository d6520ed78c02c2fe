"""The frozen language model behind one small wrapper over transformers' causal LMs and their cache.

Positions are always explicit and count text only: a prefix takes no position, so an empty prefix is
the bare LM exactly. Key/value projections per layer are exposed for layer-wise modulations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from mac_core.networks.values import Prefix

KeyValueProjection = Callable[[Tensor], tuple[Tensor, Tensor]]


class BaseLM(nn.Module):
    """A causal LM that takes a prefix and text, and gives hidden states and logits.

    Engine thread only. Shapes come from the Hugging Face configuration; grouped-query models use
    `num_key_value_heads` for the prefix (defect 8 of the reference implementation).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        takes = inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]
        # transformers 5 renames the argument architecture by architecture.
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.d_model: int = config.hidden_size
        self.head_dim: int = getattr(config, "head_dim", None) or self.d_model // self.num_heads
        self.max_positions: int = config.max_position_embeddings

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BaseLM:
        """Build with random weights from a Hugging Face configuration as plain JSON values."""
        values = dict(config)
        hf_config = AutoConfig.for_model(values.pop("model_type"), **values)
        return cls(AutoModelForCausalLM.from_config(hf_config, attn_implementation="sdpa"))

    @classmethod
    def from_pretrained(cls, path: str, *, dtype: torch.dtype = torch.float32) -> BaseLM:
        """Load a local directory or a hub name with transformers' own loader."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        return cls(model)

    @property
    def input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()  # type: ignore[operator, no-any-return]

    @property
    def bias_dtype(self) -> torch.dtype:
        """The dtype that attention adds its bias in: the weights', or autocast's."""
        device = self.input_embeddings.weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.input_embeddings.weight.dtype

    def cache(self, prefix: Prefix | None) -> DynamicCache:
        """A fresh cache that holds the prefix, or nothing."""
        cache = DynamicCache()
        if prefix is not None:
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(key, value, layer)
        return cache

    def hidden(
        self, ids: Tensor, *, positions: Tensor, attention_bias: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Last hidden states of new tokens; their keys and values join `cache`.

        Args:
            ids: `(batch, tokens)`.
            positions: `(batch, tokens)`, counted over text only.
            attention_bias: `(batch, 1, tokens, cached + tokens)`, added to attention scores.

        Returns:
            `(batch, tokens, d_model)`.
        """
        trunk = self.model.base_model
        output = trunk(  # type: ignore[operator]
            input_ids=ids,
            position_ids=positions,
            attention_mask=attention_bias,
            use_cache=True,
            **{self._cache_name: cache},
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores: `(..., d_model)` -> `(..., vocabulary)`."""
        head = getattr(self.model, "cls", None) or self.model.get_output_embeddings()  # type: ignore[operator]
        return head(hidden)  # type: ignore[no-any-return]

    def key_value_projections(self) -> list[KeyValueProjection]:
        """Per layer: `(batch, tokens, d_model)` states entering it -> its keys and values.

        Both `(batch, kv_heads, tokens, head_dim)`; rotary models' keys are left at position 0.

        Raises:
            NotImplementedError: an architecture whose layers are not known here.
        """
        return [self._projection(layer) for layer in self._layers()]

    def _layers(self) -> nn.ModuleList:
        trunk: Any = self.model.base_model
        if hasattr(trunk, "encoder"):  # BERT as a decoder
            return trunk.encoder.layer  # type: ignore[no-any-return]
        if hasattr(trunk, "h"):  # GPT-2
            return trunk.h  # type: ignore[no-any-return]
        if hasattr(trunk, "layers"):  # Llama, Qwen2, Mistral
            return trunk.layers  # type: ignore[no-any-return]
        raise NotImplementedError(f"no layer list is known for {type(self.model).__name__}")

    def _projection(self, layer: Any) -> KeyValueProjection:
        def heads(states: Tensor) -> Tensor:
            shape = (*states.shape[:-1], self.num_kv_heads, self.head_dim)
            return states.reshape(shape).transpose(1, 2)

        if hasattr(layer, "attention"):  # BERT: post-norm
            own = layer.attention.self
            return lambda states: (heads(own.key(states)), heads(own.value(states)))
        if hasattr(layer, "attn"):  # GPT-2: pre-norm, one fused projection

            def fused(states: Tensor) -> tuple[Tensor, Tensor]:
                _, key, value = layer.attn.c_attn(layer.ln_1(states)).chunk(3, dim=-1)
                return heads(key), heads(value)

            return fused
        own = layer.self_attn
        norm = layer.input_layernorm
        return lambda states: (heads(own.k_proj(norm(states))), heads(own.v_proj(norm(states))))


def attention_bias(
    *,
    cached_bias: Tensor,
    token_mask: Tensor,
    open_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Additive attention bias for new tokens after cached positions, causal among themselves.

    Args:
        cached_bias: `(batch, cached)`, what every new token adds for each cached position;
            -inf masks it.
        token_mask: `(batch, tokens)`, bool, True where a new token is real.
        open_mask: `(batch, tokens)`, bool: new tokens that earlier ones see too; None: none.

    Returns:
        `(batch, 1, tokens, cached + tokens)`. No row is masked entirely: padding attends itself.
    """
    batch, tokens = token_mask.shape
    device = token_mask.device
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    seen = causal if open_mask is None else causal | open_mask[:, None, :]
    visible = seen & token_mask[:, None, :]  # (batch, tokens, tokens)
    visible = visible | torch.eye(tokens, dtype=torch.bool, device=device)
    lowest = torch.finfo(dtype).min
    own = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, lowest)
    cached = cached_bias.to(dtype).clamp_min(lowest)[:, None, :].expand(batch, tokens, -1)
    return torch.cat([cached, own], dim=-1)[:, None]  # (batch, 1, tokens, cached + tokens)
