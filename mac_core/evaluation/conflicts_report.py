"""Conflicts as a card for people and one JSON line for tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.conflicts import WHOSE, ConflictsEvaluation, ConflictsResult
from mac_core.evaluation.report import interval, json_line, origin_lines, percent, percent_interval


def to_json_line(evaluation: ConflictsEvaluation, *, command: str) -> str:
    """One compact line, percentages with two decimals."""
    return json_line(
        {
            "dataset": "conflicts",
            "documents": evaluation.num_documents,
            "results": [_values(result) for result in evaluation.results],
            "command": command,
            **asdict(evaluation.origin),
        }
    )


def card(evaluation: ConflictsEvaluation, *, command: str) -> RenderableType:
    """The report for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("mode", "asked"):
        table.add_column(heading)
    for who in WHOSE:
        table.add_column(f"says {who}", justify="right")
    table.add_column("reads newer", justify="right")
    table.add_column("reads older", justify="right")
    table.add_column("reads other", justify="right")
    table.add_column("n", justify="right")
    for result in evaluation.results:
        says = [f"{percent(result.says[who].mean):.1f}" for who in WHOSE[1:]]
        first = [f"{percent(result.first[who].mean):.1f}" for who in WHOSE[:3]]
        table.add_row(
            *(result.mode, result.asked, interval(result.says["newer"])),
            *(*says, *first, str(result.num_questions)),
        )
    return Group(
        Text(f"conflicts: {evaluation.num_documents} documents in the bank"),
        table,
        Text(
            "Percent. latest: asked without a date, newer is right. as of: a date before the newer "
            "one, older is right. without dates: the same documents, none dated. other: the "
            "question on another subject in the same words, other is right.",
            style="dim",
        ),
        Text(command),
        *(Text(line) for line in origin_lines(evaluation.origin)),
    )


def _values(result: ConflictsResult) -> dict[str, Any]:
    return {
        "mode": result.mode,
        "asked": result.asked,
        "says": {who: percent(result.says[who].mean) for who in WHOSE},
        "first": {who: percent(result.first[who].mean) for who in WHOSE},
        "interval_95": {who: percent_interval(result.says[who]) for who in WHOSE},
        "questions": result.num_questions,
    }
