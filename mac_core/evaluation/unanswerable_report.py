"""Confidence on SQuAD 2.0 as a card for people and one JSON line for tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.metrics import Estimate
from mac_core.evaluation.report import interval, json_line, origin_lines, percent, percent_interval
from mac_core.evaluation.selective import CurvePoint
from mac_core.evaluation.unanswerable import (
    TARGET_PRECISION,
    AtThreshold,
    ModeSelectivity,
    UnanswerableEvaluation,
)

CURVE_COVERAGES = tuple(step / 20 for step in range(1, 21))
THRESHOLD_SHARES = (
    "coverage",
    "precision",
    "answerable_answered",
    "unanswerable_withheld",
    "squad2_em",
    "squad2_f1",
)


def to_json_line(evaluation: UnanswerableEvaluation, *, command: str) -> str:
    """One compact line, percentages with two decimals, the curve at twenty coverages."""
    return json_line(
        {
            "dataset": "unanswerable",
            "documents": evaluation.num_documents,
            "answerable": evaluation.num_answerable,
            "unanswerable": evaluation.num_unanswerable,
            "correct": "strict EM; any answer to an unanswerable question is wrong",
            "target_precision": percent(TARGET_PRECISION),
            "results": {mode: _values(result) for mode, result in evaluation.results.items()},
            "command": command,
            **asdict(evaluation.origin),
        }
    )


def card(evaluation: UnanswerableEvaluation, *, command: str) -> RenderableType:
    """The report for a terminal."""
    return Group(
        Text(
            f"unanswerable: {evaluation.num_documents} documents in the bank, "
            f"{evaluation.num_answerable} answerable and {evaluation.num_unanswerable} "
            "unanswerable questions"
        ),
        _confidence_table(evaluation),
        _threshold_table(evaluation),
        Text(
            "Right is strict EM; any answer to an unanswerable question is wrong. AUROC with "
            "DeLong's 95 % interval, coverage at a precision with the bootstrap's over questions. "
            "SQuAD 2 scores give a point for withholding where there is no answer.",
            style="dim",
        ),
        Text(command),
        *(Text(line) for line in origin_lines(evaluation.origin)),
    )


def at_coverages(curve: tuple[CurvePoint, ...]) -> list[CurvePoint]:
    """The curve's first points from each of `CURVE_COVERAGES` on, each once."""
    chosen = [
        next(point for point in curve if point.coverage >= coverage - 1e-9)
        for coverage in CURVE_COVERAGES
    ]
    return list(dict.fromkeys(chosen))


def _confidence_table(evaluation: UnanswerableEvaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    for heading in (
        "AUROC answerable",
        "AUROC right",
        f"coverage at {TARGET_PRECISION:.0%}",
        "from confidence",
        "area under risk",
    ):
        table.add_column(heading, justify="right")
    for mode, result in evaluation.results.items():
        threshold = result.threshold_at_target
        table.add_row(
            mode,
            interval(result.auroc_answerable),
            interval(result.auroc_right),
            interval(result.coverage_at_target),
            "nowhere" if threshold is None else f"{threshold:.3f}",
            f"{percent(result.area_under_risk):.2f}",
        )
    return table


def _threshold_table(evaluation: UnanswerableEvaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    headings = ("answered", "right of these", "answerable answered", "unanswerable withheld")
    for heading in ("threshold", *headings, "SQuAD 2 EM", "SQuAD 2 F1"):
        table.add_column(heading, justify="right")
    for mode, result in evaluation.results.items():
        for found in filter(None, (result.everything, result.at_bundle)):
            shares = (getattr(found, name) for name in THRESHOLD_SHARES)
            table.add_row(mode, f"{found.min_confidence:.3g}", *(_short(share) for share in shares))
    return table


def _short(share: Estimate | None) -> str:
    return "-" if share is None else f"{percent(share.mean):.2f}"


def _values(result: ModeSelectivity) -> dict[str, Any]:
    estimates = {
        "auroc_answerable": result.auroc_answerable,
        "auroc_right": result.auroc_right,
        "coverage_at_target": result.coverage_at_target,
    }
    return {
        **{name: percent(estimate.mean) for name, estimate in estimates.items()},
        "interval_95": {name: percent_interval(one) for name, one in estimates.items()},
        "threshold_at_target": result.threshold_at_target,
        "area_under_risk": percent(result.area_under_risk),
        "everything": _threshold_values(result.everything),
        "at_bundle": None if result.at_bundle is None else _threshold_values(result.at_bundle),
        "curve": [
            [round(point.threshold, 4), percent(point.coverage), percent(point.risk)]
            for point in at_coverages(result.curve)
        ],
    }


def _threshold_values(found: AtThreshold) -> dict[str, Any]:
    shares: dict[str, Estimate | None] = {name: getattr(found, name) for name in THRESHOLD_SHARES}
    known = {name: share for name, share in shares.items() if share is not None}
    return {
        "min_confidence": found.min_confidence,
        **{name: None if share is None else percent(share.mean) for name, share in shares.items()},
        "interval_95": {name: percent_interval(share) for name, share in known.items()},
    }
