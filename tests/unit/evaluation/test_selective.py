from math import sqrt

import pytest

from mac_core.evaluation.metrics import paired_difference, paired_ratio
from mac_core.evaluation.selective import (
    area_under_risk,
    auroc,
    coverage_at,
    coverage_at_interval,
    risk_coverage,
)


def pair_count(positives: list[float], negatives: list[float]) -> float:
    """The definition, written out."""
    pairs = [(p, n) for p in positives for n in negatives]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ([0.9, 0.8], [0.1, 0.2]),
        ([0.1], [0.9, 0.2]),
        ([0.5, 0.5, 0.9, 0.3], [0.5, 0.4, 0.9]),
        ([0.7, 0.7], [0.7]),
    ],
)
def test_auroc_is_the_share_of_pairs_in_order(
    positives: list[float], negatives: list[float]
) -> None:
    assert auroc(positives, negatives).mean == pytest.approx(pair_count(positives, negatives))


def test_aurocs_interval_by_hand() -> None:
    # Placements of the positives 1/2 and 1, of the negatives 1 and 1/2: variance 1/8 each, and
    # halved for the mean of two; DeLong's error is the root of their sum, sqrt(1/8).
    estimate = auroc([0.4, 0.9], [0.2, 0.6])
    assert estimate.mean == 0.75
    assert estimate.low == pytest.approx(0.75 - 1.959964 * sqrt(1 / 8), abs=1e-6)
    assert estimate.high == 1.0


@pytest.mark.parametrize(
    ("positives", "negatives", "mean"),
    [([0.9], [0.1], 1.0), ([0.9], [0.1, 0.2], 1.0), ([0.9, 0.3], [0.5], 0.5)],
)
def test_auroc_of_a_single_one_is_not_sure(
    positives: list[float], negatives: list[float], mean: float
) -> None:
    estimate = auroc(positives, negatives)
    assert (estimate.mean, estimate.low, estimate.high) == (mean, 0.0, 1.0)


def test_auroc_of_one_kind_alone_says_nothing() -> None:
    estimate = auroc([0.4, 0.9], [])
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


CONFIDENCES = [0.2, 0.9, 0.6, 0.6, 0.4]
RIGHT = [False, True, True, False, True]


def test_risk_and_coverage_by_hand_take_ties_together() -> None:
    curve = risk_coverage(CONFIDENCES, RIGHT)
    found = [(p.threshold, p.coverage, round(p.precision, 4)) for p in curve]
    assert found == [(0.9, 0.2, 1.0), (0.6, 0.6, 0.6667), (0.4, 0.8, 0.75), (0.2, 1.0, 0.6)]


def test_area_under_risk_by_hand() -> None:
    # 0.2 * 0 + 0.4 * 1/3 + 0.2 * 1/4 + 0.2 * 2/5
    assert area_under_risk(risk_coverage(CONFIDENCES, RIGHT)) == pytest.approx(
        0.4 / 3 + 0.05 + 0.08
    )


@pytest.mark.parametrize(("precision", "coverage"), [(1.0, 0.2), (0.7, 0.8), (0.6, 1.0)])
def test_coverage_is_the_widest_that_is_precise_enough(precision: float, coverage: float) -> None:
    point = coverage_at(risk_coverage(CONFIDENCES, RIGHT), precision=precision)
    assert point is not None
    assert point.coverage == coverage


def test_no_coverage_where_nothing_is_precise_enough() -> None:
    assert coverage_at(risk_coverage([0.5, 0.9], [True, False]), precision=0.8) is None


def test_the_bootstrap_holds_the_point_and_narrows_with_more_questions() -> None:
    few = coverage_at_interval(CONFIDENCES, RIGHT, precision=0.7, seed=0)
    many = coverage_at_interval(CONFIDENCES * 200, RIGHT * 200, precision=0.7, seed=0)
    assert few.mean == many.mean == 0.8
    assert few.low <= 0.8 <= few.high
    assert 0.0 < many.high - many.low < few.high - few.low


def test_the_bootstrap_of_what_is_never_precise_enough_is_zero() -> None:
    estimate = coverage_at_interval([0.5, 0.5], [False, False], precision=0.8, seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_bootstrap_takes_ties_together() -> None:
    # One tie, half of it right: no part of it may be answered alone.
    estimate = coverage_at_interval([0.5] * 400, [True, False] * 200, precision=0.8, seed=0)
    assert estimate.high == 0.0


def test_a_paired_ratio_by_hand() -> None:
    # means 0.4 and 0.8, ratio 1/2; residuals 0.2, -0.2, 0, 0: deviation sqrt(0.08 / 3)
    estimate = paired_ratio([0.6, 0.2, 0.4, 0.4], [0.8, 0.8, 0.8, 0.8])
    half = 1.959964 * sqrt(0.08 / 3) / (2 * 0.8)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.low == pytest.approx(0.5 - half)
    assert estimate.high == pytest.approx(0.5 + half)


def test_a_paired_ratio_to_nothing_is_unbounded() -> None:
    assert paired_ratio([0.5, 0.1], [0.0, 0.0]).low == float("-inf")


def test_a_paired_difference_by_hand() -> None:
    gain = paired_difference([0.5, 0.0, 0.5], [0.5, 0.5, 1.0])
    assert gain.mean == pytest.approx(-1 / 3)
    # Standard deviation of (0, -0.5, -0.5) is 0.2887; times 1.96 over the root of 3.
    assert (gain.low, gain.high) == pytest.approx((-0.66, -0.0066), abs=1e-3)


def test_a_paired_difference_of_one_question_is_unbounded() -> None:
    assert paired_difference([1.0], [0.0]).high == float("inf")
