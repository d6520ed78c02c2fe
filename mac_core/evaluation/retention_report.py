"""Retention as a card for people and one JSON line for tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.report import interval, json_line, origin_lines, percent, percent_interval
from mac_core.evaluation.results import RECALL_DEPTHS
from mac_core.evaluation.retention import RetentionResult, SizeResult


def to_json_line(
    result: RetentionResult, *, command: str, distractors: Sequence[dict[str, str]]
) -> str:
    """One compact line; percentages with two decimals, ratios with four."""
    return json_line(
        {
            "dataset": "retention",
            "questions": result.num_questions,
            "baseline_documents": result.sizes[0].num_documents,
            "results": [_values(size) for size in result.sizes],
            "distractors": list(distractors),
            "command": command,
            **asdict(result.origin),
        }
    )


def card(result: RetentionResult, *, command: str) -> RenderableType:
    """The report for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    recalls = [f"recall@{k}" for k in RECALL_DEPTHS]
    for heading in ("documents", "F1", "F1 ratio", "strict EM", *recalls):
        table.add_column(heading, justify="right")
    for size in result.sizes:
        table.add_row(
            size.mode,
            str(size.num_documents),
            interval(size.f1),
            f"{size.f1_ratio.mean:.3f} [{size.f1_ratio.low:.3f}, {size.f1_ratio.high:.3f}]",
            interval(size.strict_em),
            *(f"{percent(size.recall[k].mean):.2f}" for k in RECALL_DEPTHS),
        )
    first = result.sizes[0].num_documents
    return Group(
        Text(f"retention: {result.num_questions} questions on the first {first} documents"),
        table,
        Text(
            f"Ratio to the F1 with {first} documents over the same questions, 95 % interval by "
            "the delta method. Recall is of the fused selection.",
            style="dim",
        ),
        Text(command),
        *(Text(line) for line in origin_lines(result.origin)),
    )


def _values(size: SizeResult) -> dict[str, Any]:
    ratio = size.f1_ratio
    return {
        "mode": size.mode,
        "documents": size.num_documents,
        "f1": percent(size.f1.mean),
        "strict_em": percent(size.strict_em.mean),
        "f1_ratio": round(ratio.mean, 4),
        "interval_95": {
            "f1": percent_interval(size.f1),
            "strict_em": percent_interval(size.strict_em),
            "f1_ratio": [round(ratio.low, 4), round(ratio.high, 4)],
        },
        **{f"recall@{k}": percent(share.mean) for k, share in size.recall.items()},
    }
