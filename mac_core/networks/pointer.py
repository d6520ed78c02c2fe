"""Copy head over the tokens of the selected documents (See et al. 2017, arXiv 1704.04368).

The key of a token sees the token before it, so that copying on is built in and only the start of an
answer has to be found. Keys depend on the document alone and are stored beside its modulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerMemory:
    """The tokens that a batch of answers may copy."""

    keys: Tensor  # (batch, tokens, d_pointer)
    token_ids: Tensor  # (batch, tokens)
    log_prior: Tensor  # (batch, tokens), log-probability of the token's document; -inf: no token

    def beside(self, other: PointerMemory) -> PointerMemory:
        """Both memories of each row, this one's tokens first."""
        return PointerMemory(
            keys=torch.cat([self.keys, other.keys.to(self.keys.dtype)], dim=1),
            token_ids=torch.cat([self.token_ids, other.token_ids], dim=1),
            log_prior=torch.cat([self.log_prior, other.log_prior], dim=1),
        )

    def rows(self, index: Tensor) -> PointerMemory:
        """The memory of the given rows."""
        return PointerMemory(
            keys=self.keys[index],
            token_ids=self.token_ids[index],
            log_prior=self.log_prior[index],
        )


class PointerHead(nn.Module):
    """Next-token distribution = gate x vocabulary + (1 - gate) x attention over tokens."""

    def __init__(self, *, d_model: int, d_encoder: int, d_pointer: int) -> None:
        super().__init__()
        self.document_key = _projection(d_encoder, d_model, d_pointer)
        self.text_key = _projection(d_model, d_model, d_pointer)
        self.query = nn.Sequential(
            nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, d_pointer)
        )
        self.gate = nn.Linear(d_model, 1)
        self.scale = d_pointer**-0.5

    def document_keys(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Keys of a document's tokens from the amortization encoder's states.

        Args:
            states: `(documents, tokens, d_encoder)`.
            embeddings: `(documents, tokens, d_model)`, the base LM's input embeddings.

        Returns:
            `(documents, tokens, d_pointer)`.
        """
        keys: Tensor = self.document_key(_with_neighbours(states, embeddings))
        return keys

    def text_keys(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Keys of tokens that stand in the prompt, from the base LM's own hidden states."""
        keys: Tensor = self.text_key(_with_neighbours(hidden, embeddings))
        return keys

    def log_attention(self, hidden: Tensor, last: Tensor, memory: PointerMemory) -> Tensor:
        """Log-probability of copying each token.

        Args:
            hidden: `(batch, steps, d_model)`, the base LM's last hidden states.
            last: `(batch, steps, d_model)`, embedding of the token just read.

        Returns:
            `(batch, steps, tokens)`, float32; a row without tokens is -inf throughout.
        """
        query = self.query(torch.cat([hidden, scaled(last).to(hidden.dtype)], dim=-1))
        scores: Tensor = (query @ memory.keys.mT).float() * self.scale + memory.log_prior[
            :, None
        ].float()
        # Any finite normaliser will do for an empty row; that of nothing but -inf has no gradient.
        finite = scores.masked_fill(_is_empty(memory)[:, None], 0.0)
        return scores - torch.logsumexp(finite, dim=-1, keepdim=True)

    def log_gate(self, hidden: Tensor, memory: PointerMemory) -> tuple[Tensor, Tensor]:
        """Log-probability of the vocabulary and of copying, `(batch, steps)` each, float32.

        A row that has nothing to copy is given to the vocabulary whole.
        """
        score = self.gate(hidden).squeeze(-1).float()
        empty = _is_empty(memory)  # (batch, 1)
        vocabulary = F.logsigmoid(score).masked_fill(empty, 0.0)
        copying = F.logsigmoid(-score).masked_fill(empty, -torch.inf)
        return vocabulary, copying

    def mix(self, vocabulary: Tensor, hidden: Tensor, last: Tensor, memory: PointerMemory) -> Mixed:
        """The mixture at one step per row.

        Args:
            vocabulary: `(batch, vocabulary)`, scores of the base LM.
            hidden, last: `(batch, 1, d_model)`.
        """
        log_vocabulary, log_copying = self.log_gate(hidden, memory)  # (batch, 1)
        attention = self.log_attention(hidden, last, memory)[:, 0].exp()  # (batch, tokens)
        copied = log_copying.exp() * attention
        written = log_vocabulary.exp() * torch.softmax(vocabulary.float(), dim=-1)
        probabilities = written.scatter_add(1, memory.token_ids, copied)
        return Mixed(probabilities=probabilities, attention=attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """One step's distribution and where it points."""

    probabilities: Tensor  # (batch, vocabulary), rows sum to 1
    attention: Tensor  # (batch, tokens), rows sum to 1, or are 0 where there is nothing to copy


def _is_empty(memory: PointerMemory) -> Tensor:
    """Rows that have nothing to copy: bool `(batch, 1)`."""
    return torch.isneginf(memory.log_prior).all(-1, keepdim=True)


def _projection(d_state: int, d_model: int, d_pointer: int) -> nn.Sequential:
    d_input = d_state + 2 * d_model
    return nn.Sequential(nn.Linear(d_input, d_model), nn.GELU(), nn.Linear(d_model, d_pointer))


def _with_neighbours(states: Tensor, embeddings: Tensor) -> Tensor:
    """Each token's state, the embedding of the token before it, and its own embedding."""
    own = scaled(embeddings).to(states.dtype)
    before = F.pad(own, (0, 0, 1, 0))[:, :-1]
    return torch.cat([states, before, own], dim=-1)


def scaled(embeddings: Tensor) -> Tensor:
    """Embeddings brought to the size of hidden states, by the root of their width.

    Tied embeddings are small; unscaled, which token came before is learned very slowly.
    """
    return embeddings * math.sqrt(embeddings.shape[-1])
