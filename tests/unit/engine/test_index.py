"""An engine whose bank has an index: built beside it, kept for the next start, never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mac_core.config import IndexConfig
from mac_core.memory.faiss_index import FaissIndex
from mac_core.types import Document
from tests.unit.engine.conftest import Bench, MakeBench, outcome

CITIES = ("Paris", "Oslo", "Rome", "Bern", "Riga", "Lima", "Baku", "Doha")
LANDS = ("France", "Norway", "Italy", "Switzerland", "Latvia", "Peru", "Azerbaijan", "Qatar")


def learn_all(bench: Bench) -> None:
    for city, land in zip(CITIES, LANDS, strict=True):
        bench.learn(Document(id=land, text=f"The capital of {land} is {city}. It is a city."))


def index_of(bench: Bench) -> FaissIndex:
    index = bench.engine._thread.serving.bank._indexes["default"]
    assert isinstance(index, FaissIndex)
    index.wait()
    return index


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_answers_are_those_of_the_exact_search(make_bench: MakeBench, kind: str) -> None:
    config = IndexConfig(kind=kind, min_chunks=3)
    exact, indexed = make_bench(directory="a"), make_bench(directory="b", index=config)
    learn_all(exact)
    learn_all(indexed)
    assert index_of(indexed).num_keys >= 3
    for bench in (exact, indexed):
        outcome(bench.engine.remove(["Peru"]))
    for land in LANDS:
        question = f"What is the capital of {land}?"
        found, expected = indexed.ask(question), exact.ask(question)
        assert (found.text, found.sources) == (expected.text, expected.sources)


def test_the_next_start_finds_the_index_that_was_saved(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    config = IndexConfig(kind="ivf", min_chunks=3, directory=str(tmp_path / "index"))
    first = make_bench(index=config)
    learn_all(first)
    index_of(first)
    first.engine.close()
    (header,) = (tmp_path / "index").glob("*.json")
    second = make_bench(index=config)
    assert index_of(second).num_keys >= 3
    assert second.ask("What is the capital of Peru?").text == "Lima"
    assert header.exists()
