"""A benchmark's figures with their origin, as a card for people and one JSON line for tools."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.bench_load import AskFigures, IngestFigures

PERCENTILES = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is sent; the same seed sends the same."""

    documents: tuple[dict[str, Any], ...]
    questions: tuple[str, ...]
    modes: tuple[str, ...]
    concurrencies: tuple[int, ...]
    seed: int
    max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All figures of one run with their origin."""

    url: str
    server_version: Mapping[str, Any]  # the body of /version
    workload: Workload
    ingest: IngestFigures
    asks: tuple[AskFigures, ...]
    date: str  # ISO 8601, UTC


def to_json_line(report: BenchReport) -> str:
    """One compact line; the command prints it last."""
    ingest = report.ingest
    values = {
        "benchmark": "http",
        "date": report.date,
        "url": report.url,
        "server": report.server_version,
        "machine": _machine(),
        "seed": report.workload.seed,
        "documents": ingest.num_documents,
        "ingest": {
            "documents": ingest.num_documents,
            "failed": ingest.num_failed,
            "batch": ingest.batch_size,
            "seconds": round(ingest.seconds, 3),
            "documents_per_s": round(ingest.documents_per_s, 2),
            "errors": ingest.errors,
        },
        "ask": [_ask_values(figures) for figures in report.asks],
    }
    return json.dumps(values, separators=(",", ":"))


def _ask_values(figures: AskFigures) -> dict[str, Any]:
    return {
        "mode": figures.mode,
        "concurrency": figures.concurrency,
        "questions": len(figures.latencies_ms),
        **{name: _rounded(figures.percentile_ms(q)) for name, q in PERCENTILES.items()},
        "seconds": round(figures.seconds, 3),
        "questions_per_s": round(figures.questions_per_s, 2),
        "errors": figures.errors,
    }


def card(report: BenchReport) -> RenderableType:
    """The report for a terminal."""
    ingest = report.ingest
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mode")
    for heading in ("in flight", "answered", "p50 ms", "p95 ms", "p99 ms", "questions/s", "errors"):
        table.add_column(heading, justify="right")
    for figures in report.asks:
        values = _ask_values(figures)
        table.add_row(
            figures.mode,
            str(figures.concurrency),
            str(values["questions"]),
            *(f"{values[name]}" for name in PERCENTILES),
            f"{values['questions_per_s']}",
            _counts(figures.errors),
        )
    return Group(
        Text(
            f"learned {ingest.num_documents} documents in {ingest.seconds:.1f} s: "
            f"{ingest.documents_per_s:.1f} documents/s in batches of {ingest.batch_size}, "
            f"failed {ingest.num_failed}, errors {_counts(ingest.errors)}"
        ),
        table,
        *(Text(line) for line in _origin_lines(report)),
    )


def _origin_lines(report: BenchReport) -> Iterator[str]:
    """The server's own word for what it runs; its whole configuration is in the JSON line."""
    server, machine = report.server_version, _machine()
    model = server.get("model") or {}
    yield f"server {server.get('version')}  commit {server.get('commit')}"
    yield (
        f"model {model.get('name')}  amortization {str(model.get('amortization_hash'))[:12]}  "
        f"base LM {str(model.get('base_lm_hash'))[:12]}"
    )
    yield (
        f"{machine['cpus']} CPUs  {machine['system']} {machine['arch']}  "
        f"seed {report.workload.seed}  {report.date}"
    )


def _counts(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{status} x{count}" for status, count in sorted(errors.items())) or "none"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _machine() -> dict[str, Any]:
    """Client and server share it: only loopback addresses are measured."""
    return {"cpus": os.cpu_count(), "system": platform.system(), "arch": platform.machine()}
