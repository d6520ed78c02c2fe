"""The recall report: on a store, by stored chunks or by questions, for each kind of index."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mac_core.config import IndexConfig
from mac_core.engine.recall import recall_of_store
from mac_core.errors import InvalidInput
from mac_core.memory.codebook import Codebook
from mac_core.memory.codebook_records import codebook_record
from mac_core.memory.opening import open_store
from mac_core.memory.sqlite_store import DATABASE
from server.cli import app
from tests.unit.engine.fakes import FINGERPRINT
from tests.unit.memory.conftest import _make_record


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with closing(open_store(f"sqlite:///{tmp_path}", fingerprint=FINGERPRINT)) as store:
        store.put("default", [_make_record(f"d{n}", f"text {n}") for n in range(300)])
    return tmp_path


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_wide_search_finds_what_looking_at_every_key_finds(directory: Path, kind: str) -> None:
    config = IndexConfig(kind=kind, probes=300, ef_search=300)
    read: list[int] = []
    report = recall_of_store(
        f"sqlite:///{directory}", config, namespace="default", num_questions=20, advance=read.append
    )
    assert report.recall_at_8 == 1.0
    assert (report.kind, report.chunks, report.questions, sum(read)) == (kind, 300, 20, 300)
    assert report.index_p95_ms >= report.index_p50_ms > 0


def test_a_narrow_search_misses_something(directory: Path) -> None:
    config = IndexConfig(kind="ivf", probes=1)
    report = recall_of_store(
        f"sqlite:///{directory}", config, namespace="default", num_candidates=2
    )
    assert 0.0 < report.recall_at_8 < 1.0


def test_a_corrupt_record_is_left_out_and_counted(directory: Path) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        database.execute("UPDATE documents SET payload = zeroblob(9) WHERE id = 'd7'")
        database.commit()
    report = recall_of_store(
        f"sqlite:///{directory}", IndexConfig(kind="flat"), namespace="default", num_questions=5
    )
    assert (report.chunks, report.num_corrupt) == (299, 1)
    assert "1 corrupt records left out" in report.to_text()


def test_a_codebook_is_no_document_to_ask(tmp_path: Path) -> None:
    """It is the first record of a bank that was compacted by it, and has no chunks."""
    codebook = Codebook(centroids=torch.zeros(1, 256, 4))
    with closing(open_store(f"sqlite:///{tmp_path}", fingerprint=FINGERPRINT)) as store:
        store.put("default", [codebook_record(codebook, namespace="default", now=0.0)])
        store.put("default", [_make_record(f"d{n}", f"text {n}") for n in range(9)])
    report = recall_of_store(f"sqlite:///{tmp_path}", IndexConfig(kind="flat"), namespace="default")
    assert (report.chunks, report.recall_at_8) == (9, 1.0)


def test_an_empty_namespace_says_so(directory: Path) -> None:
    with pytest.raises(InvalidInput, match="'elsewhere' holds no document"):
        recall_of_store(f"sqlite:///{directory}", IndexConfig(kind="flat"), namespace="elsewhere")


def test_the_command_prints_a_card_and_one_json_line(directory: Path) -> None:
    arguments = ["bank", "recall", "hnsw", "--data-dir", str(directory), "--limit", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "recall@8" in result.stdout
    line = json.loads(result.stdout.strip().split("\n")[-1])
    assert (line["kind"], line["questions"]) == ("hnsw", 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hnsw"], "either --data-dir or --store-url"),
        (["tree", "--store-url", "sqlite:///x"], "'tree' is not flat, ivf or hnsw"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bank", "recall", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.output


def test_the_command_fails_with_the_stores_reason(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bank", "recall", "flat", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no document" in result.output
