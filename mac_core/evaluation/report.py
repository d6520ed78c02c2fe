"""An evaluation as a card for people, one JSON line for tools, and every answer on request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.metrics import Estimate, f1, strict_em
from mac_core.evaluation.results import RECALL_DEPTHS, Evaluation, ModeResult, Origin, Prediction

SCORES = ("strict_em", "prefix_em", "f1", "f1_shortest")


def to_json_line(evaluation: Evaluation, *, command: str = "") -> str:
    """One compact line, percentages with two decimals; the command prints it last."""
    return json_line(
        {
            "dataset": evaluation.dataset,
            "documents": evaluation.num_documents,
            "questions": evaluation.num_questions,
            "chunks": evaluation.num_chunks,
            "learned_chunks": evaluation.num_learned_chunks,
            "learn_s": _rounded(evaluation.learn_seconds),
            "results": {mode: _mode_values(r) for mode, r in evaluation.results.items()},
            "retrieval": {
                way: {f"recall@{k}": percent(share.mean) for k, share in by_depth.items()}
                for way, by_depth in evaluation.retrieval.items()
            },
            "command": command,
            **asdict(evaluation.origin),
        }
    )


def json_line(values: Mapping[str, Any]) -> str:
    """Compact JSON; null for what is not finite, which JSON has no number for."""
    return json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)


def write_predictions(
    path: Path,
    questions: Sequence[SquadQuestion],
    predictions: Mapping[str, Sequence[Prediction]],
) -> None:
    """Every answer of every mode beside its references, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for mode, made in predictions.items():
            for question, prediction in zip(questions, made, strict=True):
                row = {
                    "mode": mode,
                    "id": question.id,
                    "document": question.document_id,
                    "question": question.text,
                    "answer": prediction.answer,
                    "confidence": round(prediction.confidence, 4),
                    "references": question.references,
                    "strict_em": strict_em(prediction.answer, question.references),
                    "f1": round(f1(prediction.answer, question.references), 4),
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _mode_values(result: ModeResult) -> dict[str, Any]:
    estimates: dict[str, Estimate] = {name: getattr(result, name) for name in SCORES}
    return {
        **{name: percent(estimate.mean) for name, estimate in estimates.items()},
        "interval_95": {
            name: [percent(estimate.low), percent(estimate.high)]
            for name, estimate in estimates.items()
        },
        "questions": result.num_questions,
        "seconds": _rounded(result.seconds),
        "questions_per_s": _rounded(result.questions_per_s),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def card(evaluation: Evaluation, *, command: str = "") -> RenderableType:
    """The report for a terminal."""
    title = f"{evaluation.dataset}: {evaluation.num_documents} documents in the bank"
    return Group(
        Text(f"{title}, {evaluation.num_questions} questions"),
        _modes_table(evaluation),
        *([_retrieval_table(evaluation)] if evaluation.retrieval else []),
        Text(
            "EM with Wilson's, F1 with the normal 95 % interval. prefix EM: MAC's public reading "
            "(starts like the shortest reference), only to compare with its table; F1 shortest: "
            "the same for F1. No seconds: kept answers took theirs with other threads or another "
            "batch size.",
            style="dim",
        ),
        *([Text(command)] if command else []),
        *(Text(line) for line in origin_lines(evaluation.origin)),
        Text(_learned_line(evaluation)),
    )


def _learned_line(evaluation: Evaluation) -> str:
    if evaluation.learn_seconds is None:
        return f"{evaluation.num_chunks} chunks, all learned by earlier runs"
    return (
        f"{evaluation.num_learned_chunks} of {evaluation.num_chunks} chunks learned in "
        f"{evaluation.learn_seconds:.1f} s"
    )


def _modes_table(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    headings = ("strict EM", "prefix EM", "F1", "F1 shortest", "n", "seconds", "questions/s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for mode, result in evaluation.results.items():
        table.add_row(
            mode,
            *(interval(getattr(result, name)) for name in SCORES),
            str(result.num_questions),
            *(
                "-" if value is None else f"{value:.1f}"
                for value in (result.seconds, result.questions_per_s)
            ),
        )
    return table


def _retrieval_table(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("retrieval")
    for k in RECALL_DEPTHS:
        table.add_column(f"recall@{k}", justify="right")
    for way, by_depth in evaluation.retrieval.items():
        table.add_row(way, *(interval(by_depth[k]) for k in RECALL_DEPTHS))
    return table


def origin_lines(origin: Origin) -> Iterable[str]:
    """Where a card's numbers come from."""
    yield f"commit {origin.commit}  seed {origin.seed}  {origin.date}"
    yield (
        f"bundle {origin.bundle}  config {origin.config_fingerprint[:12]}  "
        f"amortization {origin.amortization_hash[:12]}  base LM {origin.base_lm_hash[:12]}"
    )
    yield (
        f"top_k {origin.top_k}  readings {origin.num_readings}  batch {origin.batch_size}  "
        f"device {origin.device}  {origin.precision}  torch threads {origin.num_threads}"
    )
    yield f"data {origin.data_file} {origin.data_sha256[:12]}"


def interval(estimate: Estimate) -> str:
    """As `21.40 [19.60, 23.20]`, in percent."""
    low, high = percent(estimate.low), percent(estimate.high)
    return f"{percent(estimate.mean):.2f} [{low:.2f}, {high:.2f}]"


def percent(share: float) -> float:
    """With two decimals."""
    return round(100 * share, 2)


def percent_interval(estimate: Estimate) -> list[float]:
    """Both ends, in percent."""
    return [percent(estimate.low), percent(estimate.high)]
