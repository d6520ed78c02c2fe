"""The paper's amortization network: T5 over a document, learned tokens decoded in one pass.

A T5 encoder reads the text; its decoder, fed T learned tokens in place of text, gives T states in
one parallel pass; an MLP of its own turns each state into a virtual token (arXiv 2403.04317,
section 3.1 and its published code). As there, the decoder keeps T5's causal order among the learned
tokens; unlike there, its cross-attention is masked, so padding has no influence.
Knows nothing of base LMs: it has its own vocabulary embeddings for the base LM's token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, T5Model

from mac_core.config import AmortizationConfig
from mac_core.networks.interfaces import AmortizationNetwork
from mac_core.networks.layerwise import mean_unit
from mac_core.networks.values import DocumentEncoding, QuestionEncoding


class SlotMLP(nn.Module):
    """One MLP per token slot, `skip(x) + Linear(tanh(Linear(LayerNorm(x))))`, all slots at once."""

    def __init__(self, *, num_slots: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(num_slots, d_in))
        self.norm_bias = nn.Parameter(torch.zeros(num_slots, d_in))
        self.hidden = SlotLinear(num_slots=num_slots, d_in=d_in, d_out=d_out)
        self.out = SlotLinear(num_slots=num_slots, d_in=d_out, d_out=d_out)
        self.skip: nn.Module = (
            nn.Identity()
            if d_in == d_out
            else SlotLinear(num_slots=num_slots, d_in=d_in, d_out=d_out)
        )

    def forward(self, states: Tensor) -> Tensor:
        """`(batch, slots, d_in)` -> `(batch, slots, d_out)`."""
        normed = F.layer_norm(states, states.shape[-1:]) * self.norm_weight + self.norm_bias
        mixed: Tensor = self.skip(states) + self.out(torch.tanh(self.hidden(normed)))
        return mixed


class SlotLinear(nn.Module):
    """A `Linear` with weights of its own for each slot; initialised as `nn.Linear`."""

    def __init__(self, *, num_slots: int, d_in: int, d_out: int) -> None:
        super().__init__()
        bound = d_in**-0.5
        self.weight = nn.Parameter(torch.empty(num_slots, d_in, d_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_slots, d_out).uniform_(-bound, bound))

    def forward(self, states: Tensor) -> Tensor:
        """`(batch, slots, d_in)` -> `(batch, slots, d_out)`."""
        return torch.einsum("nsi,sio->nso", states, self.weight) + self.bias


class T5Amortization(nn.Module):
    """Token ids -> modulation and selection key; engine thread only.

    The paper uses one such network for documents and another for questions.
    """

    def __init__(
        self, config: AmortizationConfig, t5_config: Mapping[str, Any], *, d_key: int
    ) -> None:
        """Build with random weights from a Hugging Face T5 configuration (v1.1 and base alike)."""
        super().__init__()
        values = {name: value for name, value in t5_config.items() if name != "model_type"}
        t5 = T5Model(AutoConfig.for_model("t5", **values))
        self.encoder, self.decoder = t5.encoder, t5.decoder
        self.decoder.set_input_embeddings(None)  # it is fed the learned tokens, never text
        d_encoder: int = t5.config.d_model
        self.tokens = nn.Parameter(torch.empty(config.num_virtual_tokens, d_encoder))
        nn.init.normal_(self.tokens, std=t5.config.initializer_factor)  # as T5's own embeddings
        self.slots = SlotMLP(
            num_slots=config.num_virtual_tokens, d_in=d_encoder, d_out=config.d_modulation
        )
        self.selection = nn.Linear(d_encoder, d_key, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> DocumentEncoding:
        """Read `(documents, tokens)` ids, right-padded, under a bool mask of the same shape."""
        padding = mask.long()
        states = self.encoder(input_ids=ids, attention_mask=padding).last_hidden_state
        decoded = self.decoder(
            inputs_embeds=self.tokens.expand(len(ids), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=padding,  # without it a modulation depends on the padding
            use_cache=False,
        ).last_hidden_state
        slots = self.slots(decoded)  # (documents, virtual_tokens, d_modulation)
        return DocumentEncoding(
            slots=slots,
            slot_mask=torch.ones_like(slots[..., 0], dtype=torch.bool),
            selection_key=F.normalize(self.selection(mean_unit(states, mask)), dim=-1),
            states=states,
        )


class T5Reader(AmortizationNetwork):
    """The paper's pair: one `T5Amortization` for documents, one for questions."""

    def __init__(
        self, config: AmortizationConfig, t5_config: Mapping[str, Any], *, d_key: int
    ) -> None:
        super().__init__()
        self.document = T5Amortization(config, t5_config, d_key=d_key)
        self.question = T5Amortization(config, t5_config, d_key=d_key)

    def encode_documents(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> DocumentEncoding:
        """As the interface says; `embeddings` are not read."""
        encoding: DocumentEncoding = self.document(ids, mask)
        return encoding

    def encode_questions(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> QuestionEncoding:
        """States `(batch, virtual_tokens, d_modulation)`, the start of a target modulation."""
        encoding: DocumentEncoding = self.question(ids, mask)
        return QuestionEncoding(
            states=encoding.slots, mask=encoding.slot_mask, selection_query=encoding.selection_key
        )
