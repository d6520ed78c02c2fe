"""Locality as a card for people and one JSON line for tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.locality import LocalityEvaluation, LocalityResult
from mac_core.evaluation.report import interval, json_line, origin_lines, percent, percent_interval

SHARES = ("local", "same", "abstained", "confidence")


def to_json_line(
    evaluation: LocalityEvaluation, *, command: str, questions: Sequence[dict[str, str]]
) -> str:
    """One compact line, percentages with two decimals."""
    return json_line(
        {
            "dataset": "locality",
            "documents": evaluation.num_documents,
            "results": [_values(result) for result in evaluation.results],
            "questions_from": list(questions),
            "command": command,
            **asdict(evaluation.origin),
        }
    )


def card(evaluation: LocalityEvaluation, *, command: str) -> RenderableType:
    """The report for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    table.add_column("asked")
    headings = ("bare LM's or none", "bare LM's", "abstained", "confidence", "threshold", "n")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in evaluation.results:
        table.add_row(
            result.mode,
            result.asked,
            *(interval(getattr(result, name)) for name in SHARES),
            "none" if result.min_confidence is None else f"{result.min_confidence:g}",
            str(result.num_questions),
        )
    return Group(
        Text(f"locality: {evaluation.num_documents} documents in the bank"),
        table,
        Text(
            "outside: questions about nothing in the bank, where keeping to the bare LM's answer "
            "is right. inside: questions on its documents, where it is a loss. Percent; answers "
            "are equal after SQuAD's normalisation.",
            style="dim",
        ),
        Text(command),
        *(Text(line) for line in origin_lines(evaluation.origin)),
    )


def _values(result: LocalityResult) -> dict[str, Any]:
    return {
        "mode": result.mode,
        "asked": result.asked,
        **{name: percent(getattr(result, name).mean) for name in SHARES},
        "interval_95": {name: percent_interval(getattr(result, name)) for name in SHARES},
        "min_confidence": result.min_confidence,
        "questions": result.num_questions,
    }
