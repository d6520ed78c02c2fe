"""Readings: a question's documents read apart, and of their answers the surest.

Documents read together harm each other: the base LM copies from all of them, and the best one alone
is answered from better than the best four together (deploy/docs/experiments.md). Read apart, each
is answered from as if it were the whole bank; selection's prior and the confidence of each answer,
which knows nothing of the other documents, then say which answer to give: the likeliest, were the
two independent. What selection finds unlikely is not read: that would cost more than it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log, log1p

import torch

from mac_core.config import ConfidenceConfig
from mac_core.engine.confidence import Judged, judge
from mac_core.memory.bank import Selected
from mac_core.networks.model import AnswerRequest, Generated

# Of the prior of a reading and all before it, for it to be made; chosen on held-out train articles.
MIN_SHARE = 0.2
MIN_CONFIDENCE = 1e-6  # below it, and as near to 1, confidences are not told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read together for one question."""

    place: int  # of the question in its batch
    selected: Sequence[Selected]  # best first, priors among themselves; empty: the bare LM answers
    log_share: float = 0.0  # of the prior of all that was selected for the question


def readings_of(place: int, selected: Sequence[Selected], *, together: int) -> list[Reading]:
    """One question's readings, best first; one at least.

    Args:
        selected: best first.
        together: how many are read together; 0: all.
    """
    if not 0 < together < len(selected):
        return [Reading(place=place, selected=selected)]
    priors = torch.tensor([chosen.score for chosen in selected]).log_softmax(dim=0)
    made = list[Reading]()
    for first in range(0, len(selected), together):
        own = priors[first : first + together]
        log_share = float(own.logsumexp(dim=0))
        so_far = float(priors[: first + together].logsumexp(dim=0))
        if made and log_share - so_far < log(MIN_SHARE):
            break
        kept = zip(selected[first:], own.log_softmax(dim=0).tolist(), strict=False)
        made.append(
            Reading(
                place=place,
                selected=[replace(chosen, log_prior=prior) for chosen, prior in kept],
                log_share=log_share,
            )
        )
    return made


def parts_to_read(
    readings: Sequence[Reading], *, max_readings: int, max_chunks: int
) -> Iterator[Sequence[Reading]]:
    """Readings that go through the model together, in order; one at least each time.

    Args:
        max_chunks: of a part, counting every reading as wide as its widest: rows are padded.
    """
    first, widest = 0, 0
    for place, reading in enumerate(readings):
        widest = max(widest, len(reading.selected))
        together = place - first + 1
        if place > first and (together > max_readings or together * widest > max_chunks):
            yield readings[first:place]
            first, widest = place, len(reading.selected)
    if readings:
        yield readings[first:]


def surest_answers(
    config: ConfidenceConfig,
    readings: Sequence[Reading],
    requests: Sequence[AnswerRequest],
    generated: Sequence[Generated],
) -> list[Judged]:
    """Of each question, the answer to give.

    Args:
        requests, generated: by reading.
    """
    judged = judge_each(config, readings, requests, generated)
    return [judged[number] for number in surest(readings, judged)]


def judge_each(
    config: ConfidenceConfig,
    readings: Sequence[Reading],
    requests: Sequence[AnswerRequest],
    generated: Sequence[Generated],
) -> list[Judged]:
    """What the model made of each reading, spelt, cited and judged."""
    return [
        judge(config, request, reading.selected, made)
        for reading, request, made in zip(readings, requests, generated, strict=True)
    ]


def surest(readings: Sequence[Reading], judged: Sequence[Judged]) -> list[int]:
    """Of each question, in the order of the batch, the place in `readings` of the answer to give.

    Args:
        readings: of every question of the batch at least one.
        judged: by reading.
    """
    best: dict[int, int] = {}
    for number, reading in enumerate(readings):
        rival = best.setdefault(reading.place, number)
        if _standing(reading, judged[number]) > _standing(readings[rival], judged[rival]):
            best[reading.place] = number
    return [best[place] for place in sorted(best)]


def _standing(reading: Reading, judged: Judged) -> float:
    confidence = min(max(judged.confidence, MIN_CONFIDENCE), 1.0 - MIN_CONFIDENCE)
    return reading.log_share + log(confidence) - log1p(-confidence)
