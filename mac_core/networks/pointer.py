"""Copy head over the tokens of the selected documents (See et al. 2017, arXiv 1704.04368).

The key of a token sees the token before it, so that copying on is built in and only the start of an
answer has to be found. A token has a second key for *ending* after it, so that where an answer
stops is read from the document as its start is, not guessed by the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerMemory:
    """The tokens that a batch of answers may copy, or end after."""

    keys: Tensor  # (batch, tokens, 2 * d_pointer): for copying, for ending
    token_ids: Tensor  # (batch, tokens)
    log_prior: Tensor  # (batch, tokens), log-probability of the token's document; -inf: no token
    document: Tensor  # (batch, tokens), place of the token's document in its row

    def beside(self, other: PointerMemory) -> PointerMemory:
        """Both memories of each row, this one's tokens first."""
        return PointerMemory(
            keys=torch.cat([self.keys, other.keys.to(self.keys.dtype)], dim=1),
            token_ids=torch.cat([self.token_ids, other.token_ids], dim=1),
            log_prior=torch.cat([self.log_prior, other.log_prior], dim=1),
            document=torch.cat([self.document, other.document], dim=1),
        )

    def rows(self, index: Tensor) -> PointerMemory:
        """The memory of the given rows."""
        return PointerMemory(
            keys=self.keys[index],
            token_ids=self.token_ids[index],
            log_prior=self.log_prior[index],
            document=self.document[index],
        )


class PointerHead(nn.Module):
    """Next-token distribution = gate x vocabulary + (1 - gate) x attention over tokens."""

    def __init__(self, *, d_model: int, d_encoder: int, d_pointer: int) -> None:
        super().__init__()
        self.document_key = _projection(d_encoder, d_model, d_pointer)
        self.text_key = _projection(d_model, d_model, d_pointer)
        self.query = nn.Sequential(
            nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, 2 * d_pointer)
        )
        self.gate = nn.Linear(d_model, 1)
        self.scale = d_pointer**-0.5

    def document_keys(self, states: Tensor, before: Tensor, own: Tensor) -> Tensor:
        """Keys of documents' tokens from the networks' states of them.

        Args:
            states: `(batch, tokens, d_encoder)`.
            before, own: `(batch, tokens, d_model)`, the base LM's input embeddings of the token
                before each token and of the token itself.

        Returns:
            `(batch, tokens, 2 * d_pointer)`.
        """
        keys: Tensor = self.document_key(_with_embeddings(states, before, own))
        return keys

    def text_keys(self, hidden: Tensor, before: Tensor, own: Tensor) -> Tensor:
        """Keys of tokens that stand in the prompt, from the base LM's own hidden states."""
        keys: Tensor = self.text_key(_with_embeddings(hidden, before, own))
        return keys

    def log_attention(self, hidden: Tensor, last: Tensor, memory: PointerMemory) -> Tensor:
        """Log-probability of copying each token, and of ending after each.

        Args:
            hidden: `(batch, steps, d_model)`, the base LM's last hidden states.
            last: `(batch, steps, d_model)`, embedding of the token just read.

        Returns:
            `(batch, steps, 2 * tokens)`, float32, copying first; a row without tokens is -inf
            throughout.
        """
        query = self.query(torch.cat([hidden, scaled(last).to(hidden.dtype)], dim=-1))
        scores = torch.cat(
            [
                (part_query @ part_key.mT).float() * self.scale
                for part_query, part_key in zip(
                    query.chunk(2, dim=-1), memory.keys.chunk(2, dim=-1), strict=True
                )
            ],
            dim=-1,
        )
        scores = scores + memory.log_prior.float().repeat(1, 2)[:, None]
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

    def mix(
        self,
        vocabulary: Tensor,
        hidden: Tensor,
        last: Tensor,
        memory: PointerMemory,
        *,
        end_id: int,
    ) -> Mixed:
        """The mixture at one step per row.

        Args:
            vocabulary: `(batch, vocabulary)`, scores of the base LM.
            hidden, last: `(batch, 1, d_model)`.
            end_id: the token that closes an answer.
        """
        log_vocabulary, log_copying = self.log_gate(hidden, memory)  # (batch, 1)
        copied, ended = self.log_attention(hidden, last, memory)[:, 0].exp().chunk(2, dim=-1)
        written = log_vocabulary.exp() * torch.softmax(vocabulary.float(), dim=-1)
        copying = log_copying.exp()
        probabilities = written.scatter_add(1, memory.token_ids, copying * copied)
        probabilities[:, end_id] += (copying * ended).sum(-1)
        return Mixed(probabilities=probabilities, attention=copied + ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """One step's distribution and where it points."""

    probabilities: Tensor  # (batch, vocabulary), rows sum to 1
    attention: Tensor  # (batch, tokens), rows sum to 1, or are 0 where there is nothing to copy


def ending_mask(copy_mask: Tensor, answer_lengths: Tensor) -> Tensor:
    """Where the answer may end, for each step that copies: bool `(batch, steps, tokens)`.

    Args:
        copy_mask: `(batch, steps, tokens)`, bool: tokens that continue the answer at each step;
            one step more than the longest answer has tokens.
        answer_lengths: `(batch,)`; the step of that number closes the answer.
    """
    after = F.pad(copy_mask, (0, 0, 1, 0))[:, :-1]  # where the token before the step stands
    steps = torch.arange(copy_mask.shape[1], device=copy_mask.device)
    closes = (steps == answer_lengths[:, None]) & (answer_lengths[:, None] > 0)
    return after & closes[..., None]


def _is_empty(memory: PointerMemory) -> Tensor:
    """Rows that have nothing to copy: bool `(batch, 1)`."""
    return torch.isneginf(memory.log_prior).all(-1, keepdim=True)


def _projection(d_state: int, d_model: int, d_pointer: int) -> nn.Sequential:
    d_input = d_state + 2 * d_model
    return nn.Sequential(nn.Linear(d_input, d_model), nn.GELU(), nn.Linear(d_model, 2 * d_pointer))


def _with_embeddings(states: Tensor, before: Tensor, own: Tensor) -> Tensor:
    """Each token's state, the embedding of the token before it, and its own embedding."""
    return torch.cat([states, scaled(before).to(states), scaled(own).to(states)], dim=-1)


def shifted(embeddings: Tensor) -> Tensor:
    """Embeddings of the token before each, `(batch, tokens, d_model)`; zeros before the first."""
    return F.pad(embeddings, (0, 0, 1, 0))[:, :-1]


def scaled(embeddings: Tensor) -> Tensor:
    """Embeddings brought to the size of hidden states, by the root of their width.

    Tied embeddings are small; unscaled, which token came before is learned very slowly.
    """
    return embeddings * math.sqrt(embeddings.shape[-1])
