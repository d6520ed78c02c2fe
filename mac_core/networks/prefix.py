"""Target modulation -> key/value prefix of the frozen base LM, for modulations of the LM's width.

Two readings of P-tuning v2 (arXiv 2110.07602): the paper's, `num_prefix_tokens` positions per layer
for the whole modulation (arXiv 2403.04317), and the wide one, a position in every layer for every
virtual token, because capacity is wanted where it is read (arXiv 2408.03094, 2411.05877).
Shapes are those of the keys and values: `num_kv_heads`, which grouped-query models have fewer of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mac_core.networks.interfaces import PrefixNetwork
from mac_core.networks.values import Prefix, TargetModulation


class LayerProjection(nn.Module):
    """A token's key and value in each layer, through one narrow hidden layer."""

    def __init__(
        self, *, d_modulation: int, d_hidden: int, num_layers: int, num_kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.shape = (num_layers, 2, num_kv_heads, head_dim)
        self.norm = nn.LayerNorm(d_modulation)
        self.hidden = nn.Linear(d_modulation, d_hidden)
        self.out = nn.Linear(d_hidden, num_layers * 2 * num_kv_heads * head_dim)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, log_bias: Tensor) -> Prefix:
        """`(batch, prefix_tokens, d_modulation)` under `(batch, prefix_tokens)` -> prefix."""
        states = self.out(torch.nn.functional.gelu(self.hidden(self.norm(tokens))))
        split = states.reshape(*tokens.shape[:2], *self.shape)
        keys, values = split.permute(
            3, 2, 0, 4, 1, 5
        )  # (layers, batch, kv_heads, tokens, head_dim)
        return Prefix(keys=tuple(keys), values=tuple(values), log_bias=log_bias)


class PaperPrefix(PrefixNetwork):
    """The paper's prefix: all T virtual tokens are mixed into P positions of every layer.

    P mixtures of the tokens, by a learned `(prefix_tokens, virtual_tokens)` map, each of which then
    gives its own key and value in each layer. Absent slots leave the mixtures; `log_bias` is 0, or
    -inf in a row that has no slot at all.
    """

    def __init__(
        self,
        *,
        num_prefix_tokens: int,
        num_virtual_tokens: int,
        d_modulation: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        d_hidden: int = 768,
    ) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(num_prefix_tokens, num_virtual_tokens))
        nn.init.normal_(self.mix, std=num_virtual_tokens**-0.5)
        self.project = LayerProjection(
            d_modulation=d_modulation,
            d_hidden=d_hidden,
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )

    def forward(self, target: TargetModulation) -> Prefix:
        """One prefix of P positions per row.

        Raises:
            ValueError: not the number of virtual tokens that the map was made for.
        """
        num_tokens = target.slots.shape[1]
        if num_tokens != self.mix.shape[1]:
            raise ValueError(f"{num_tokens} virtual tokens, the prefix takes {self.mix.shape[1]}")
        present = target.log_bias > -torch.inf  # (batch, virtual_tokens)
        slots = target.slots.masked_fill(~present[..., None], 0.0)
        tokens = self.mix @ slots  # (batch, prefix_tokens, d_modulation)
        blank = ~present.any(1, keepdim=True).expand(-1, len(self.mix))
        log_bias = torch.zeros_like(tokens[..., 0]).masked_fill(blank, -torch.inf)
        prefix: Prefix = self.project(tokens, log_bias)
        return prefix


class WidePrefix(PrefixNetwork):
    """The wide prefix: every virtual token is a position of every layer and keeps its log-bias."""

    def __init__(
        self,
        *,
        d_modulation: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        d_hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.project = LayerProjection(
            d_modulation=d_modulation,
            d_hidden=d_hidden,
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )

    def forward(self, target: TargetModulation) -> Prefix:
        """One prefix of T positions per row."""
        prefix: Prefix = self.project(target.slots, target.log_bias)
        return prefix
