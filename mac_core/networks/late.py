"""Late interaction: how well a document's tokens answer to each of the question's.

Each token of the question looks for its best match among the document's (ColBERT, Khattab and
Zaharia 2020, arXiv 2004.12832); the matches are added up, each weighed by what its token says of
the question, so that an article's name counts for more than "what". The document's side depends on
no question and is made once, when the document is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mac_core.networks.values import QuestionEncoding

UNIT = 127
BEGIN_WEIGHT = 2.0  # of a token before training: ten of them make a logit range of 20


class LateInteraction(nn.Module):
    """Scores of documents, in nats of a softmax over them. Engine thread only."""

    def __init__(self, *, d_modulation: int, d_question: int, d_late: int) -> None:
        super().__init__()
        self.key = nn.Linear(d_modulation, d_late, bias=False)
        self.query = nn.Linear(d_question, d_late, bias=False)
        self.weight = nn.Linear(d_question, 1)
        nn.init.zeros_(self.weight.weight)
        nn.init.constant_(self.weight.bias, _inverse_softplus(BEGIN_WEIGHT))

    def keys(self, slots: Tensor) -> Tensor:
        """`(..., virtual_tokens, d_modulation)` -> `(..., virtual_tokens, d_late)`, unit length."""
        return F.normalize(self.key(slots), dim=-1)

    def forward(self, question: QuestionEncoding, keys: Tensor, mask: Tensor) -> Tensor:
        """Score every document for every question: `(batch, documents)`, float32.

        Args:
            keys: `(documents, virtual_tokens, d_late)`, the same for all questions.
            mask: `(documents, virtual_tokens)`, bool, True where a slot is real; a document
                without any scores 0.
        """
        query = F.normalize(self.query(question.states), dim=-1)  # (batch, tokens, d_late)
        match = torch.einsum("bqd,nsd->bqns", query, keys.to(query.dtype))
        match = match.masked_fill(~mask, -1.0).amax(-1)  # (batch, tokens, documents)
        match = match.masked_fill(~mask.any(-1), 0.0).float()
        weight = F.softplus(self.weight(question.states).float())  # (batch, tokens, 1)
        weight = weight.masked_fill(~question.mask[..., None], 0.0)
        return (weight * match).sum(1)


def pack_unit(vectors: Tensor) -> Tensor:
    """Vectors of unit length as int8, a quarter of their bytes; no component is above 1."""
    return (vectors * UNIT).round().clamp(-UNIT, UNIT).to(torch.int8)


def unpack_unit(packed: Tensor) -> Tensor:
    """Undo `pack_unit`, to within half a level: float32."""
    return packed.float() / UNIT


def _inverse_softplus(value: float) -> float:
    return float(torch.tensor(value).expm1().log())
