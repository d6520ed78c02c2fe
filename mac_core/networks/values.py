"""Tensor values passed between the networks; shapes are written here once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentEncoding:
    """A batch of documents after one forward pass."""

    slots: Tensor  # (documents, virtual_tokens, d_modulation)
    slot_mask: Tensor  # (documents, virtual_tokens), bool, True where a slot is real
    selection_key: Tensor  # (documents, d_key), unit length
    states: Tensor  # (documents, tokens, d_encoder), contextual, framing tokens included


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionEncoding:
    """A batch of encoded questions."""

    states: Tensor  # (batch, tokens, d_question)
    mask: Tensor  # (batch, tokens), bool, True where a token is real
    selection_query: Tensor  # (batch, d_key), unit length

    def row(self, index: int) -> QuestionEncoding:
        """One question as a batch of one, without its padding."""
        length = int(self.mask[index].sum())
        return QuestionEncoding(
            states=self.states[index : index + 1, :length],
            mask=self.mask[index : index + 1, :length],
            selection_query=self.selection_query[index : index + 1],
        )

    def rows(self, index: Tensor) -> QuestionEncoding:
        """The questions of int64 `(rows,)`, with their padding."""
        return QuestionEncoding(
            states=self.states[index],
            mask=self.mask[index],
            selection_query=self.selection_query[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSlice:
    """The modulations that a batch of questions aggregates.

    The leading axis is 1 when all questions read the same documents: expand, never repeat.
    """

    slots: Tensor  # (batch | 1, documents, virtual_tokens, d_modulation)
    mask: Tensor  # (batch | 1, documents, virtual_tokens), bool, True where a slot is real
    log_prior: Tensor  # (batch, documents), log-probability of each document given the question
    # Above the first level: what the slots' attention scores gain, (batch | 1, documents,
    # virtual_tokens); None at the first.
    log_bias: Tensor | None = None
    origin: Tensor | None = None  # (batch | 1, documents, virtual_tokens, 4), see `Origin`


class Origin(IntEnum):
    """Columns that say where a slot comes from, for slots that are tokens; all int64."""

    DOCUMENT = 0  # place of its document in the row
    POSITION = 1  # of its token in the document; -1: a framing token, which nothing copies
    BEFORE = 2  # id of the token before it
    TOKEN = 3  # its own id


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetModulation:
    """The one modulation for each question; the same type as a document's, hence the recursion."""

    slots: Tensor  # (batch, virtual_tokens, d_modulation)
    log_bias: Tensor  # (batch, virtual_tokens), added to attention scores; -inf: no slot here
    document_mass: Tensor  # (batch, documents), attention mass by document, rows sum to 1
    origin: Tensor | None = None  # (batch, virtual_tokens, 4), see `Origin`
    # (batch, documents), log-probability that the document does not answer; None: not known.
    log_null: Tensor | None = None
    # (batch, virtual_tokens), int64, which of the bank's slots each one is, counted document by
    # document; None: each is a mixture, or the rows had no one bank.
    kept: Tensor | None = None

    @classmethod
    def of_rows(
        cls, parts: Sequence[TargetModulation], rows: Sequence[Tensor], *, batch: int
    ) -> TargetModulation:
        """One batch of `parts` that were made apart; a row in none of them has no slots, no mass.

        Args:
            rows: by part, its rows' places in the batch, int64 `(rows,)`.
        """
        origins = [part.origin for part in parts if part.origin is not None]
        nulls = [part.log_null for part in parts if part.log_null is not None]
        biases = [part.log_bias for part in parts]
        masses = [part.document_mass for part in parts]
        return cls(
            slots=_at_rows([part.slots for part in parts], rows, batch=batch),
            log_bias=_at_rows(biases, rows, batch=batch, fill=-torch.inf),
            document_mass=_at_rows(masses, rows, batch=batch),
            origin=_at_rows(origins, rows, batch=batch) if origins else None,
            log_null=_at_rows(nulls, rows, batch=batch) if nulls else None,
        )

    def unweighed(self, rows: Tensor) -> TargetModulation:
        """The same with every slot counting alike in the rows of bool `(batch,)`."""
        alike = self.log_bias.masked_fill(self.log_bias > -torch.inf, 0.0)
        return replace(self, log_bias=torch.where(rows[:, None], alike, self.log_bias))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Key/value positions for every layer of the base LM."""

    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, prefix_tokens, head_dim)
    values: tuple[Tensor, ...]  # per layer (batch, kv_heads, prefix_tokens, head_dim)
    log_bias: Tensor  # (batch, prefix_tokens), added to attention scores; -inf: masked

    @property
    def num_tokens(self) -> int:
        return self.log_bias.shape[1]

    def rows(self, index: Tensor) -> Prefix:
        """The prefix of the given rows; one row may serve many questions."""
        return Prefix(
            keys=tuple(key[index] for key in self.keys),
            values=tuple(value[index] for value in self.values),
            log_bias=self.log_bias[index],
        )

    def masked(self, blank: Tensor) -> Prefix:
        """The same prefix with the rows of bool `(batch, 1)` hidden altogether."""
        return replace(self, log_bias=self.log_bias.masked_fill(blank, -torch.inf))


def _at_rows(
    tensors: Sequence[Tensor], rows: Sequence[Tensor], *, batch: int, fill: float = 0.0
) -> Tensor:
    """Tensors of one rank at their rows of one `(batch, ...)`, with `fill` where none reaches."""
    sizes = [max(size) for size in zip(*(t.shape[1:] for t in tensors), strict=True)]
    whole = tensors[0].new_full((batch, *sizes), fill)
    for tensor, index in zip(tensors, rows, strict=True):
        place: tuple[Tensor | slice, ...] = (index, *(slice(size) for size in tensor.shape[1:]))
        whole[place] = tensor
    return whole
