"""How well a confidence tells what to answer: AUROC, risk and coverage; knows numbers only.

A decision that only sees confidences treats equal ones alike: ties are always taken together.
Sources: DeLong et al. 1988 (interval of the AUROC), El-Yaniv and Wiener 2010 (risk and coverage).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from statistics import fmean, variance

import numpy as np

from mac_core.evaluation.metrics import Z_95, Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What answering from `threshold` on gives."""

    threshold: float  # a confidence that occurs; everything at or above it is answered
    coverage: float  # share of all questions that are answered, in (0, 1]
    precision: float  # share of the answered that are right, in [0, 1]

    @property
    def risk(self) -> float:
        return 1.0 - self.precision


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> Estimate:
    """The chance that a positive has the higher confidence than a negative; a tie counts half.

    The 95 % interval is DeLong's; [0, 1] where a side has fewer than two, which have no variance.
    Where one side is empty nothing is known: 0.5.
    """
    if not positives or not negatives:
        return Estimate(mean=0.5, low=0.0, high=1.0)
    above = _placements(positives, negatives)
    mean = fmean(above)
    if min(len(positives), len(negatives)) < 2:
        return Estimate(mean=mean, low=0.0, high=1.0)
    below = [1.0 - place for place in _placements(negatives, positives)]
    half = Z_95 * sqrt(variance(above) / len(above) + variance(below) / len(below))
    return Estimate(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def _placements(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """By value, the share of `others` below it, equals counted half."""
    ranked = sorted(others)
    return [
        (bisect_left(ranked, value) + bisect_right(ranked, value)) / (2 * len(ranked))
        for value in values
    ]


def risk_coverage(confidences: Sequence[float], right: Sequence[bool]) -> list[CurvePoint]:
    """One point for each confidence that occurs, highest first; the last one answers everything."""
    ranked = sorted(zip(confidences, right, strict=True), key=lambda pair: -pair[0])
    points: list[CurvePoint] = []
    num_answered = num_right = 0
    for threshold, tied in groupby(ranked, key=lambda pair: pair[0]):
        hits = [hit for _, hit in tied]
        num_answered += len(hits)
        num_right += sum(hits)
        points.append(
            CurvePoint(
                threshold=threshold,
                coverage=num_answered / len(ranked),
                precision=num_right / num_answered,
            )
        )
    return points


def area_under_risk(curve: Sequence[CurvePoint]) -> float:
    """Mean risk over all coverages: each point's risk holds from the point before it on."""
    coverages = [0.0, *(point.coverage for point in curve)]
    return sum(
        point.risk * (point.coverage - before)
        for point, before in zip(curve, coverages, strict=False)
    )


def coverage_at(curve: Sequence[CurvePoint], *, precision: float) -> CurvePoint | None:
    """The point of most coverage whose precision is at least `precision`; None: there is none."""
    reached = [point for point in curve if point.precision >= precision]
    return reached[-1] if reached else None


def coverage_at_interval(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    precision: float,
    seed: int,
    num_resamples: int = 1000,
) -> Estimate:
    """`coverage_at` with its 95 % percentile bootstrap over questions; 0 where none reaches it.

    The threshold is chosen anew in every resample, as it was in the data.
    """
    scores, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    generator = np.random.default_rng(seed)
    drawn = [
        _coverage_of_counts(scores, hits, counts, precision=precision)
        for counts in generator.multinomial(
            len(scores), np.full(len(scores), 1 / len(scores)), size=num_resamples
        )
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    point = coverage_at(risk_coverage(confidences, right), precision=precision)
    mean = 0.0 if point is None else point.coverage
    return Estimate(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)))


def _coverage_of_counts(
    scores: np.ndarray, hits: np.ndarray, counts: np.ndarray, *, precision: float
) -> float:
    """As `coverage_at` of a sample that holds each question `counts` times; best first."""
    answered = counts.cumsum()
    with np.errstate(invalid="ignore"):
        reached = (counts * hits).cumsum() / answered >= precision
    reached &= np.append(scores[1:] != scores[:-1], True)  # a tie is answered whole
    return float(answered[reached].max(initial=0)) / len(scores)
