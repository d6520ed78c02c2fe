"""Compaction as a card for people and one JSON line for tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.compaction import CompactionResult, SettingResult
from mac_core.evaluation.metrics import Estimate
from mac_core.evaluation.report import interval, json_line, origin_lines, percent, percent_interval

KIB = 1024


def to_json_line(result: CompactionResult, *, command: str) -> str:
    """One compact line; percentages with two decimals, bytes rounded."""
    return json_line(
        {
            "dataset": "compaction",
            "mode": "memory",
            "documents": result.num_documents,
            "questions": result.num_questions,
            "baseline": result.settings[0].setting.name,
            "results": [_values(setting) for setting in result.settings],
            "command": command,
            **asdict(result.origin),
        }
    )


def card(result: CompactionResult, *, command: str) -> RenderableType:
    """The report for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("setting")
    headings = ("KiB a document", "with text", "codebook KiB", "F1", "F1 gain", "strict EM")
    for heading in (*headings, "EM gain", "same"):
        table.add_column(heading, justify="right")
    for one in result.settings:
        table.add_row(
            one.setting.name,
            f"{one.modulation_bytes / KIB:.1f}",
            f"{one.record_bytes / KIB:.1f}",
            f"{one.codebook_bytes / KIB:.0f}" if one.codebook_bytes else "",
            interval(one.f1),
            _signed(one.f1_gain),
            interval(one.strict_em),
            _signed(one.em_gain),
            f"{percent(one.same_answers):.1f}",
        )
    first = result.settings[0].setting.name
    return Group(
        Text(f"compaction: {result.num_questions} questions, {result.num_documents} documents"),
        table,
        Text(
            f"Gains are over {first}, paired by question, with the normal 95 % interval; same: "
            f"answers that are letter for letter those of {first}, percent.",
            style="dim",
        ),
        Text(command),
        *(Text(line) for line in origin_lines(result.origin)),
    )


def _signed(gain: Estimate) -> str:
    return f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def _values(one: SettingResult) -> dict[str, Any]:
    return {
        "setting": one.setting.name,
        "modulation_bytes": round(one.modulation_bytes),
        "record_bytes": round(one.record_bytes),
        "codebook_bytes": one.codebook_bytes,
        "f1": percent(one.f1.mean),
        "strict_em": percent(one.strict_em.mean),
        "f1_gain": percent(one.f1_gain.mean),
        "em_gain": percent(one.em_gain.mean),
        "same_answers": percent(one.same_answers),
        "interval_95": {
            "f1": percent_interval(one.f1),
            "strict_em": percent_interval(one.strict_em),
            "f1_gain": percent_interval(one.f1_gain),
            "em_gain": percent_interval(one.em_gain),
        },
    }
