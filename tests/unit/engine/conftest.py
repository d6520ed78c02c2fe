"""An engine on the tiny model, ready, with hands on its clocks, hooks and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.engine.serving import Clocks
from mac_core.types import DEFAULT_NAMESPACE, Answer, Document, DocumentResult, Question
from tests.unit.engine.fakes import (
    WAIT_S,
    FailingStore,
    FakeModel,
    HandClock,
    RecordingObserver,
    open_failing_store,
)

T = TypeVar("T")


def outcome(future: Future[T]) -> T:
    return future.result(WAIT_S)


@dataclass
class Bench:
    """An engine and everything around it that a test may touch."""

    engine: Engine
    model: FakeModel
    clock: HandClock
    observer: RecordingObserver
    stores: list[FailingStore]

    @property
    def store(self) -> FailingStore:
        return self.stores[-1]

    def learn(
        self, *texts: str | Document, namespace: str = DEFAULT_NAMESPACE
    ) -> list[DocumentResult]:
        documents = [Document(text=text) if isinstance(text, str) else text for text in texts]
        return outcome(self.engine.add(documents, namespace=namespace))

    def ask(self, text: str, **options: object) -> Answer:
        return outcome(self.engine.ask(Question(text=text, **options)))


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(
        *, model: FakeModel | None = None, directory: str = "bank", **options: object
    ) -> Bench:
        clock, observer, stores = HandClock(), RecordingObserver(), list[FailingStore]()
        used = model or FakeModel()

        def open_store(_: object) -> FailingStore:
            stores.append(open_failing_store(tmp_path / directory))
            return stores[-1]

        engine = Engine(
            bundle=Path("fake"),
            store_directory=tmp_path / directory,
            config=EngineConfig(**{"max_batch_chunks": 4, "max_batch_questions": 4, **options}),
            observer=observer,
            load=lambda: used,
            open_store=open_store,
            clocks=Clocks(monotonic=lambda: clock.monotonic_s, now=lambda: clock.epoch_s),
        )
        made.append(Bench(engine, used, clock, observer, stores))
        engine.start()
        assert engine.wait_until_ready(timeout_s=WAIT_S), engine.status().detail
        used.amortized.clear()
        used.answered.clear()
        observer.batches.clear()
        return made[-1]

    yield make
    for bench in made:
        bench.engine.close(now=True)


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()
