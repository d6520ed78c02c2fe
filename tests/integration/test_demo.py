"""`make demo`'s script as a process: its closing line is a contract with other tools."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import SHIPPED
from tests.integration.server_process import environment

ROOT = Path(__file__).parents[2]
COUNT = r"(\d+)/(\d+)"
CLOSING_LINE = re.compile(rf"demo: before {COUNT}, memory {COUNT}, hybrid {COUNT} correct")
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One run: its exit code, its output, and the closing line's six numbers."""

    code: int
    output: str
    numbers: tuple[int, ...]


@pytest.fixture(scope="module")
def demo(bundle: Path) -> Demo:
    completed = subprocess.run(
        [sys.executable, "deploy/demo/demo.py"],
        cwd=ROOT,
        env=environment(bundle),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    lines = completed.stdout.splitlines()
    closing = CLOSING_LINE.fullmatch(lines[-1] if lines else "")
    assert closing, completed.stdout[-2000:] + completed.stderr[-2000:]
    return Demo(
        code=completed.returncode,
        output=completed.stdout,
        numbers=tuple(map(int, closing.groups())),
    )


def test_demo_asks_at_least_twelve_questions_in_every_column(demo: Demo) -> None:
    totals = set(demo.numbers[1::2])
    assert len(totals) == 1
    assert min(totals) >= 12


def test_demo_succeeds_exactly_when_the_memory_helped(demo: Demo) -> None:
    before, _, memory, *_ = demo.numbers
    assert demo.code == (0 if memory > before else 1)


def test_demo_learns_every_document(demo: Demo) -> None:
    assert "POST /documents: 35 of 35 inserted" in demo.output
    assert '"status": "inserted"' in demo.output


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no bundle is shipped in this checkout")
def test_shipped_bundle_answers_more_after_learning(demo: Demo) -> None:
    before, _, memory, *_ = demo.numbers
    assert memory > before
