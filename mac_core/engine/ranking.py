"""Candidates once more, with late interaction: the second stage of selection.

The first stage looks at every chunk of a bank, cheaply; this one looks at every token of the few
that came out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mac_core.engine.ports import AnsweringModel
from mac_core.memory.bank import BankEntry, Selected
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.values import QuestionEncoding


def rank(candidates: Sequence[Selected], late: Tensor, *, late_scale: float) -> list[Selected]:
    """The candidates with late interaction added, best first; equal scores keep their order.

    Args:
        late: `(candidates,)`, late interaction of the question with each.
    """
    scores = torch.tensor([chosen.score for chosen in candidates]) + late_scale * late
    order = scores.sort(descending=True, stable=True).indices
    priors = scores[order].log_softmax(dim=0).tolist()
    return [
        replace(
            candidates[place],
            score=score,
            log_prior=prior,
            late=match,
            first=candidates[place].score,
        )
        for place, score, prior, match in zip(
            order.tolist(), scores[order].tolist(), priors, late[order].tolist(), strict=True
        )
    ]


def late_scores(
    model: AnsweringModel, question: QuestionEncoding, candidates: Sequence[Selected]
) -> Tensor:
    """Late interaction of one question with each candidate: `(candidates,)`."""
    return model.match(question, [keys_of(model, chosen.entry) for chosen in candidates])


def keys_of(model: AnsweringModel, entry: BankEntry) -> AggregationKeys:
    """Those made when the chunk was learned; made here only where it has none."""
    return entry.aggregation_keys or model.aggregation_keys(entry.stored.unpack())
