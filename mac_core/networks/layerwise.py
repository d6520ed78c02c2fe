"""Layer-wise amortization: a document's hidden states of every layer are its modulation.

A bidirectional encoder of the base LM's depth and width reads the document once; neighbouring
positions are pooled into slots; at layer l the base LM's own key and value projections turn a
slot's part for layer l into a prefix position. P-tuning v2 in all layers, in the space in which the
base LM already attends. The same encoder reads questions. Capacity after arXiv 2408.03094 and
2411.05877.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from mac_core.networks.base_lm import BaseLM
from mac_core.networks.interfaces import AmortizationNetwork, PrefixNetwork
from mac_core.networks.values import (
    DocumentEncoding,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)


class LayerwiseAmortization(AmortizationNetwork):
    """Document token embeddings -> modulation, selection key and contextual states."""

    def __init__(self, encoder: nn.Module, *, pool: int) -> None:
        super().__init__()
        encoder.set_input_embeddings(None)  # type: ignore[operator]  # the base LM's are read
        self.encoder = encoder
        self.pool = pool

    @classmethod
    def from_config(cls, config: dict[str, Any], *, pool: int) -> LayerwiseAmortization:
        """Build with random weights from a Hugging Face encoder configuration."""
        values = dict(config)
        hf_config = AutoConfig.for_model(values.pop("model_type"), **values)
        encoder = AutoModel.from_config(
            hf_config, attn_implementation="sdpa", add_pooling_layer=False
        )
        return cls(encoder, pool=pool)

    def encode_documents(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> DocumentEncoding:
        """Read the base LM's embeddings of the documents, one pass."""
        output = self.encoder(
            inputs_embeds=embeddings, attention_mask=mask.long(), output_hidden_states=True
        )
        layers = torch.cat(output.hidden_states[:-1], dim=-1)  # (documents, tokens, layers * d)
        slots, slot_mask = pool_positions(layers, mask, size=self.pool)
        states = output.last_hidden_state
        return DocumentEncoding(
            slots=slots,
            slot_mask=slot_mask,
            states=states,
            selection_key=mean_unit(states, mask),
        )

    def encode_questions(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> QuestionEncoding:
        """Read questions with the encoder that reads documents, so that both meet in one space."""
        output = self.encoder(inputs_embeds=embeddings, attention_mask=mask.long())
        states = output.last_hidden_state
        return QuestionEncoding(states=states, mask=mask, selection_query=mean_unit(states, mask))


class LayerwisePrefix(PrefixNetwork):
    """Target modulation -> prefix through the base LM's own projections; owns no weights."""

    def __init__(self, base_lm: BaseLM) -> None:
        super().__init__()
        self._projections = base_lm.key_value_projections()

    def forward(self, target: TargetModulation) -> Prefix:
        """Slots `(batch, virtual_tokens, layers * d_model)` -> one position each in every layer."""
        parts = target.slots.chunk(len(self._projections), dim=-1)
        pairs = [project(part) for project, part in zip(self._projections, parts, strict=True)]
        return Prefix(
            keys=tuple(key for key, _ in pairs),
            values=tuple(value for _, value in pairs),
            log_bias=level(target.log_bias),
        )


def level(log_bias: Tensor) -> Tensor:
    """Shift each row so that equal weights become zero: log of weight times number of slots."""
    count = (log_bias > torch.finfo(log_bias.dtype).min).sum(-1, keepdim=True).clamp_min(1)
    shift = torch.logsumexp(log_bias, dim=-1, keepdim=True) - count.log()
    return log_bias - shift.nan_to_num(neginf=0.0)  # a row without slots stays at -inf


def pool_positions(states: Tensor, mask: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Average every `size` neighbouring real positions into one slot.

    Args:
        states: `(documents, tokens, width)`.
        mask: `(documents, tokens)`, bool, True where a token is real.

    Returns:
        Slots `(documents, ceil(tokens / size), width)` and their bool mask.
    """
    short = -states.shape[1] % size
    weights = F.pad(mask, (0, short)).reshape(len(mask), -1, size).to(states.dtype)
    grouped = F.pad(states, (0, 0, 0, short)).reshape(len(states), -1, size, states.shape[-1])
    totals = (grouped * weights[..., None]).sum(2)  # (documents, slots, width)
    counts = weights.sum(2)  # (documents, slots)
    return totals / counts.clamp_min(1.0)[..., None], counts > 0


def mean_unit(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real positions, scaled to unit length: `(documents, width)`."""
    weights = mask.to(states.dtype)[..., None]
    mean = (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
    return F.normalize(mean.float(), dim=-1)
