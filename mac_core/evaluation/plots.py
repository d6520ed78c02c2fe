"""Curves as SVG. matplotlib is an optional extra and is imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mac_core.errors import InvalidInput
from mac_core.evaluation.compaction import CompactionResult
from mac_core.evaluation.retention import RetentionResult
from mac_core.evaluation.selective import CurvePoint
from mac_core.evaluation.unanswerable import UnanswerableEvaluation

WIDTH, HEIGHT = 6.4, 4.0  # inches
MAX_POINTS = 400  # of a curve
STYLE = {
    "svg.hashsalt": "mac",  # the same curve gives the same file
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def require_matplotlib() -> None:
    """Before hours of measuring rather than after them.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InvalidInput("--plot needs matplotlib: pip install 'mac-server[plot]'")


def draw_retention(result: RetentionResult, path: Path) -> None:
    """F1 over the size of the bank, a line for each mode, with 95 % bars."""
    with _axes(path) as axes:
        for mode in dict.fromkeys(size.mode for size in result.sizes):
            mine = [size for size in result.sizes if size.mode == mode]
            heights = [100 * size.f1.mean for size in mine]
            below = [100 * (size.f1.mean - size.f1.low) for size in mine]
            above = [100 * (size.f1.high - size.f1.mean) for size in mine]
            counts = [size.num_documents for size in mine]
            axes.errorbar(counts, heights, (below, above), marker="o", capsize=3, label=mode)
        sizes = sorted({size.num_documents for size in result.sizes})
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("documents in the bank")
        axes.set_ylabel("F1, percent")
        axes.set_title(
            f"{result.num_questions} questions on the first {sizes[0]:,} documents", fontsize=10
        )


def draw_compaction(result: CompactionResult, path: Path) -> None:
    """F1 over the bytes of a document's modulation, a line for each method, with 95 % bars."""
    with _axes(path) as axes:
        for method in dict.fromkeys(one.setting.method for one in result.settings):
            mine = [one for one in result.settings if one.setting.method == method]
            heights = [100 * one.f1.mean for one in mine]
            # The bars are of the paired differences: all settings answer the same questions.
            below = [100 * (one.f1_gain.mean - one.f1_gain.low) for one in mine]
            above = [100 * (one.f1_gain.high - one.f1_gain.mean) for one in mine]
            sizes = [one.modulation_bytes / 1024 for one in mine]
            axes.errorbar(sizes, heights, (below, above), marker="o", capsize=3, label=method)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("KiB of a document's modulation")
        axes.set_ylabel("F1, percent")
        axes.set_title(
            f"{result.num_questions} questions, {result.num_documents:,} documents", fontsize=10
        )


def draw_risk_coverage(evaluation: UnanswerableEvaluation, path: Path) -> None:
    """Risk over coverage, a line for each mode; a dot where the bundle's threshold is."""
    with _axes(path) as axes:
        for mode, result in evaluation.results.items():
            curve = _thinned(result.curve)
            coverages = [100 * point.coverage for point in curve]
            risks = [100 * point.risk for point in curve]
            (line,) = axes.plot(coverages, risks, label=mode)
            found = result.at_bundle
            if found is not None and found.precision is not None:
                risk = 100 * (1 - found.precision.mean)
                axes.plot(100 * found.coverage.mean, risk, "o", color=line.get_color())
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("answered, percent of all questions")
        axes.set_ylabel("wrong, percent of the answered")
        axes.set_title(
            f"{evaluation.num_answerable} answerable, {evaluation.num_unanswerable} unanswerable",
            fontsize=10,
        )


def _thinned(curve: Sequence[CurvePoint]) -> Sequence[CurvePoint]:
    """About `MAX_POINTS` of the points, evenly, with the last one: more cannot be seen."""
    step = -(-len(curve) // MAX_POINTS)
    return [*curve[:-1:step], curve[-1]]


@contextmanager
def _axes(path: Path) -> Iterator[Any]:
    """Axes to draw on; written to `path` at the end. No window and no global figure."""
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
