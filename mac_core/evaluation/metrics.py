"""Scores of one answer and 95 % intervals of their means; knows nothing of models or files.

Answers are compared after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250): lower
case, no ASCII punctuation, no English articles, single spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over questions with its 95 % interval, all three as fractions in [0, 1]."""

    mean: float
    low: float
    high: float


def normalize(text: str) -> str:
    """Bring an answer to the form in which answers are compared."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def strict_em(answer: str, references: Sequence[str]) -> bool:
    """Is the normalised answer equal to a normalised reference?"""
    return normalize(answer) in {normalize(reference) for reference in references}


def prefix_em(answer: str, references: Sequence[str]) -> bool:
    """What MAC's public evaluation counts as an exact match; only to stand beside its table.

    There the normalised answer is cut to as many characters as the shortest reference has before
    the two are compared, so "1000" counts as "10" and every answer counts as "The"; the other
    references are not looked at, so that this can also be below `strict_em`.
    """
    return normalize(answer).startswith(normalize(shortest(references)))


def shortest(references: Sequence[str]) -> str:
    """The one reference that MAC's public evaluation keeps: fewest characters, first of equals."""
    return min(references, key=len)


def f1(answer: str, references: Sequence[str]) -> float:
    """The best overlap of words with any reference: harmonic mean of precision and recall.

    0 where there is no reference: nothing that is said is right.
    """
    said = normalize(answer).split()
    return max((_overlap(said, normalize(one).split()) for one in references), default=0.0)


def _overlap(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    num_common = (Counter(answer) & Counter(reference)).total()
    return 2 * num_common / (len(answer) + len(reference))


def recall_at(rank: int | None, k: int) -> bool:
    """Is the right document among the first `k`? `rank` counts from 0; None: it was not found."""
    return rank is not None and rank < k


def wilson(hits: Sequence[bool]) -> Estimate:
    """A share of hits with Wilson's score interval, which stays in [0, 1] at both ends.

    Questions count as independent; several share a paragraph, so it is a little too narrow.
    """
    count, mean = len(hits), fmean(hits)
    shrink = 1 + Z_95**2 / count
    center = (mean + Z_95**2 / (2 * count)) / shrink
    half = Z_95 * sqrt(mean * (1 - mean) / count + Z_95**2 / (4 * count**2)) / shrink
    return Estimate(mean=mean, low=max(0.0, center - half), high=min(1.0, center + half))


def normal(values: Sequence[float]) -> Estimate:
    """A mean of values in [0, 1] with the normal interval; the same caveat as `wilson`."""
    mean = fmean(values)
    half = Z_95 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 1.0
    return Estimate(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """The mean of what each question gained, with the normal interval; it may be below 0."""
    gains = [one - other for one, other in zip(after, before, strict=True)]
    mean = fmean(gains)
    half = Z_95 * stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else inf
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def paired_ratio(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """The ratio of two means over the same questions; its interval by the delta method.

    Not a fraction: it may exceed 1. Both ends are infinite where the mean before is 0.
    """
    mean_before = fmean(before)
    if mean_before == 0.0:
        return Estimate(mean=inf, low=-inf, high=inf)
    ratio = fmean(after) / mean_before
    residuals = [one - ratio * other for one, other in zip(after, before, strict=True)]
    spread = stdev(residuals) if len(residuals) > 1 else inf
    half = Z_95 * spread / (sqrt(len(residuals)) * mean_before)
    return Estimate(mean=ratio, low=max(0.0, ratio - half), high=ratio + half)
