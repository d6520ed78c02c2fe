"""The engine on a real bundle (tiny, random weights): nothing faked below the facade."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.types import Answer, Document, Question
from tests.builders import build_tiny_bundle
from tests.unit.engine.fakes import WAIT_S

WORDS = [
    "elbe",
    "dam",
    "bridge",
    "amber",
    "cedar",
    "copper",
    "granite",
    "maple",
    "willow",
    "harbour",
]
DOCUMENTS = [
    Document(id=f"d{i}", text=f"the river {word} rises in the north and flows to the sea {i}")
    for i, word in enumerate(WORDS)
]
QUESTIONS = [
    Question(text=f"where did the {word} rise", mode=mode, max_new_tokens=6)
    for word, mode in zip(WORDS, ("memory", "hybrid", "text", "none", "memory") * 2, strict=True)
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@contextmanager
def running(bundle: Path, directory: Path) -> Iterator[Engine]:
    config = EngineConfig(max_batch_questions=len(QUESTIONS), max_batch_chunks=4)
    engine = Engine(bundle=bundle, store_directory=directory, config=config)
    engine.start()
    assert engine.wait_until_ready(timeout_s=WAIT_S), engine.status().detail
    try:
        yield engine
    finally:
        engine.close(now=True)


def told(answer: Answer) -> tuple[object, ...]:
    """Everything that does not depend on versions and time."""
    return answer.text, answer.confidence, answer.sources, answer.usage


def ask_one_by_one(engine: Engine) -> list[tuple[object, ...]]:
    return [told(engine.ask(question).result(WAIT_S)) for question in QUESTIONS]


def test_restart_gives_the_same_answers(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path) as engine:
        results = engine.add(DOCUMENTS).result(WAIT_S)
        before = ask_one_by_one(engine)
    assert {result.status for result in results} == {"inserted"}
    with running(bundle, tmp_path) as engine:
        assert ask_one_by_one(engine) == before


def test_delete_equals_never_ingested_bit_for_bit(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "never") as engine:
        engine.add([*DOCUMENTS[:4], *DOCUMENTS[5:]]).result(WAIT_S)
        never = ask_one_by_one(engine)
    with running(bundle, tmp_path / "deleted") as engine:
        engine.add(DOCUMENTS).result(WAIT_S)
        assert ask_one_by_one(engine) != never
        engine.remove([DOCUMENTS[4].id or ""]).result(WAIT_S)
        assert ask_one_by_one(engine) == never


def test_questions_asked_together_read_what_they_read_alone(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path) as engine:
        engine.add(DOCUMENTS).result(WAIT_S)
        alone = ask_one_by_one(engine)
        together = [told(f.result(WAIT_S)) for f in [engine.ask(q) for q in QUESTIONS]]
    assert [text for text, *_ in together] == [text for text, *_ in alone]
    assert [[s.id for s in sources] for *_, sources, _ in together] == [
        [s.id for s in sources] for *_, sources, _ in alone
    ]


def test_the_bank_changes_the_answer(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path) as engine:
        empty = engine.ask(QUESTIONS[0]).result(WAIT_S)
        engine.add(DOCUMENTS).result(WAIT_S)
        full = engine.ask(QUESTIONS[0]).result(WAIT_S)
    assert (empty.sources, empty.usage.prefix_tokens) == ((), 0)
    assert told(full) != told(empty)
    assert sum(source.score for source in full.sources) == pytest.approx(1.0, abs=1e-5)
