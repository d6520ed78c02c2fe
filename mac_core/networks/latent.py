"""Latent amortization: one state per token, from part-way up an encoder, is the modulation.

A document runs through the lower layers of a bidirectional encoder alone; what comes out there is
stored, once per token, and the layers above run later, together with the question (`refine`). The
split is that of DeFormer (Cao et al. 2020, arXiv 2005.00697); one latent per slot is expanded at
use into keys and values of every layer of the base LM, by the LM's own projections, as in
`layerwise`. The same encoder reads questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from mac_core.networks.base_lm import BaseLM
from mac_core.networks.interfaces import AmortizationNetwork, PrefixNetwork
from mac_core.networks.layerwise import level, mean_unit
from mac_core.networks.stack import EncoderStack
from mac_core.networks.values import (
    DocumentEncoding,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)


class LatentAmortization(AmortizationNetwork):
    """Document token embeddings -> one latent per token, and a selection key."""

    def __init__(
        self,
        encoder_config: Mapping[str, Any],
        *,
        depth: int,
        selection_layers: int | None = None,
        document_position: int = 0,
    ) -> None:
        """`depth` layers make the modulation, `selection_layers` above them its selection key.

        Args:
            selection_layers: None: as many as the encoder has above `depth`.
            document_position: where positions of documents begin; those of questions begin at 0.
        """
        super().__init__()
        self.encoder_config = dict(encoder_config)  # of all layers
        self.document_position = document_position
        values = dict(encoder_config)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        above = config.num_hidden_layers - depth if selection_layers is None else selection_layers
        config.num_hidden_layers = depth
        self.lower: Any = AutoModel.from_config(
            config, attn_implementation="sdpa", add_pooling_layer=False
        )
        self.lower.set_input_embeddings(None)  # the base LM's are read
        self.upper = EncoderStack(encoder_config, num_layers=above)

    def encode_documents(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> DocumentEncoding:
        """Read the base LM's embeddings of the documents, one pass; every position is a slot."""
        states = self._lower(embeddings, mask, first=self.document_position)
        return DocumentEncoding(
            slots=states,
            slot_mask=mask,
            states=states,
            selection_key=self._selection(states, mask),
        )

    def encode_questions(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> QuestionEncoding:
        """Read questions with the encoder that reads documents, so that both meet in one space."""
        states = self._lower(embeddings, mask)
        return QuestionEncoding(
            states=states, mask=mask, selection_query=self._selection(states, mask)
        )

    def _lower(self, embeddings: Tensor, mask: Tensor, *, first: int = 0) -> Tensor:
        positions = first + torch.arange(mask.shape[1], device=mask.device)
        output = self.lower(
            inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions[None]
        )
        states: Tensor = output.last_hidden_state
        return states

    def _selection(self, states: Tensor, mask: Tensor) -> Tensor:
        return mean_unit(self.upper(states, mask), mask)


class LatentPrefix(PrefixNetwork):
    """The best slots of a target modulation -> a position each in every layer of the base LM."""

    def __init__(self, base_lm: BaseLM, *, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self._projections = base_lm.key_value_projections()
        shape = (base_lm.num_layers, base_lm.d_model)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, target: TargetModulation) -> Prefix:
        """Slots `(batch, virtual_tokens, d_model)` -> at most `num_prefix_tokens` positions."""
        kept = min(self.num_prefix_tokens, target.slots.shape[1])
        log_bias, index = target.log_bias.topk(kept, dim=1)  # (batch, prefix_tokens)
        slots = target.slots.gather(1, index[..., None].expand(-1, -1, target.slots.shape[-1]))
        pairs = [
            project(slots * scale + shift)
            for project, scale, shift in zip(self._projections, self.scale, self.shift, strict=True)
        ]
        return Prefix(
            keys=tuple(key for key, _ in pairs),
            values=tuple(value for _, value in pairs),
            log_bias=level(log_bias),
        )
