"""Start, restart, drain, stop, crash: state, refusals, and an outcome for everybody."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.errors import EngineFailed, NotReady, Overloaded
from mac_core.types import Document, Fingerprint, Question
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import FINGERPRINT, WAIT_S, FakeModel, Gate

FACTS = [
    Document(id=f"d{i}", text=f"The code of vault {i} is Alpha{i}. Keep it.") for i in range(9)
]
QUESTIONS = [f"What is the code of vault {i}?" for i in range(9)]


def answers(bench: Bench) -> list[tuple[object, ...]]:
    """Everything of each answer that does not depend on versions and time."""
    made = [bench.ask(text, mode=mode) for text in QUESTIONS for mode in ("memory", "hybrid")]
    return [(a.text, a.confidence, a.sources, a.usage) for a in made]


def make_engine(tmp_path: Path, **options: object) -> Engine:
    return Engine(
        bundle=Path("fake"), store_directory=tmp_path / "bank", config=EngineConfig(), **options
    )


def test_engine_refuses_until_it_is_ready(tmp_path: Path) -> None:
    gate, model = Gate(), FakeModel()

    def load() -> FakeModel:
        gate()
        return model

    engine = make_engine(tmp_path, load=load)
    engine.start()
    gate.wait_until_reached()
    status = engine.status()
    assert (status.state, status.detail) == ("starting", "loading the model")
    assert (status.last_step_age_s, engine.bank_version("default")) == (None, 0)
    assert engine.model_info() == {"name": "fake"}
    with pytest.raises(NotReady, match="starting"):
        engine.ask(Question(text="why"))
    gate.open()
    assert engine.wait_until_ready(timeout_s=WAIT_S)
    assert engine.status().state == "ready"
    assert engine.model_info()["base_lm_hash"] == FINGERPRINT.base_lm_hash
    engine.close()


def test_failing_load_is_told_by_state_and_refusal(tmp_path: Path) -> None:
    def load() -> FakeModel:
        raise FileNotFoundError("no bundle at /nowhere")

    engine = make_engine(tmp_path, load=load)
    engine.start()
    assert not engine.wait_until_ready(timeout_s=WAIT_S)
    assert engine.status().state == "failed"
    assert "no bundle at /nowhere" in engine.status().detail
    with pytest.raises(NotReady, match="failed"):
        engine.add([FACTS[0]])
    engine.close()
    assert engine.status().state == "failed"


def test_restart_gives_the_same_answers(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.learn(*FACTS, Document(id="d3", text="The code of vault 3 is Omega."))
    before = answers(bench)
    bench.engine.close()
    again = make_bench()
    assert again.engine.bank_version("default") == bench.engine.bank_version("default")
    assert answers(again) == before
    assert "Omega" in {text for text, *_ in before}


def test_other_networks_records_are_refused_with_the_way_out(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.learn(FACTS[0])
    bench.engine.close()
    other = Fingerprint(amortization_hash="c" * 64, base_lm_hash="b" * 64)
    engine = make_engine(bench.store._path.parent.parent, load=lambda: FakeModel(fingerprint=other))
    engine.start()
    assert not engine.wait_until_ready(timeout_s=WAIT_S)
    assert "mac bank reindex" in engine.status().detail


def test_after_a_delete_answers_equal_those_of_a_bank_that_never_held_it(
    make_bench: MakeBench,
) -> None:
    never, deleted = make_bench(directory="never"), make_bench(directory="deleted")
    never.learn(*FACTS[:4], *FACTS[5:])
    deleted.learn(*FACTS)
    held = answers(deleted)
    outcome(deleted.engine.remove([FACTS[4].id or ""]))
    assert answers(deleted) == answers(never)
    assert answers(deleted) != held


def test_full_question_queue_refuses_at_once(make_bench: MakeBench) -> None:
    bench, gate = make_bench(max_queued_questions=2), Gate()
    bench.model.on_answer = gate
    running = bench.engine.ask(Question(text="why"))
    gate.wait_until_reached()
    waiting = [bench.engine.ask(Question(text="why")) for _ in range(2)]
    with pytest.raises(Overloaded, match="questions"):
        bench.engine.ask(Question(text="why"))
    assert bench.engine.status().queued_questions == 2
    gate.open()
    assert [outcome(future).text for future in (running, *waiting)] == ["nobody knows"] * 3


def test_asking_is_not_starved_by_a_large_ingest(bench: Bench) -> None:
    order: list[str] = []
    gate = Gate()
    bench.model.on_amortize = gate
    added = bench.engine.add([Document(text=f"Fact {i} is number {i}.") for i in range(256)])
    gate.wait_until_reached()
    asked = bench.engine.ask(Question(text="Fact"))
    bench.model.on_amortize = lambda _: order.append("amortize")
    bench.model.on_answer = lambda _: order.append("answer")
    gate.open()
    assert len(outcome(added)) == 256
    assert outcome(asked).text
    assert order.index("answer") == 0
    assert len(order) == 64


def test_asking_is_not_starved_by_one_long_document(bench: Bench) -> None:
    order: list[str] = []
    gate = Gate()
    bench.model.on_amortize = gate
    added = bench.engine.add([Document(text="Much to say here. " * 300)])
    gate.wait_until_reached()
    asked = bench.engine.ask(Question(text="Fact"))
    bench.model.on_amortize = lambda _: order.append("amortize")
    bench.model.on_answer = lambda _: order.append("answer")
    gate.open()
    assert outcome(asked).bank_version == 0
    assert outcome(added)[0].status == "inserted"
    assert order[0] == "answer"
    assert len(order) > 5


def test_an_ingest_is_not_starved_by_questions(make_bench: MakeBench) -> None:
    bench = make_bench(max_batch_questions=1)
    gate, seen = Gate(), []
    bench.model.on_answer = gate
    futures = [bench.engine.ask(Question(text="Fact")) for _ in range(20)]
    gate.wait_until_reached()
    added = bench.engine.add([FACTS[0]])
    bench.model.on_answer = lambda _: seen.append(added.done())
    gate.open()
    [outcome(future) for future in futures]
    assert seen[1:] == [True] * 18


def test_drain_finishes_what_is_queued_and_refuses_what_is_new(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_amortize = gate
    added = bench.engine.add(FACTS)
    gate.wait_until_reached()
    asked = bench.engine.ask(Question(text=QUESTIONS[0]))
    assert not bench.engine.drain(timeout_s=0.0)
    assert bench.engine.status().state == "draining"
    with pytest.raises(NotReady, match="draining"):
        bench.engine.ask(Question(text="why"))
    gate.open()
    assert bench.engine.drain(timeout_s=WAIT_S)
    assert {result.status for result in added.result(0)} == {"inserted"}
    assert asked.result(0).text
    assert bench.engine.status().state == "stopped"


def test_drain_that_runs_out_of_time_says_so_and_close_then_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    bench.model.on_answer = gate
    running = bench.engine.ask(Question(text=QUESTIONS[0]))
    gate.wait_until_reached()
    queued = bench.engine.ask(Question(text=QUESTIONS[1]))
    assert not bench.engine.drain(timeout_s=0.01)
    scheduler = bench.engine._scheduler
    stop = scheduler.stop

    def stop_then_let_go(refusal: str) -> None:
        stop(refusal)
        gate.open()

    monkeypatch.setattr(scheduler, "stop", stop_then_let_go)
    bench.engine.close()
    assert isinstance(running.exception(0), NotReady)
    assert isinstance(queued.exception(0), NotReady)
    bench.engine.close()


def test_close_of_an_engine_that_never_started_is_allowed(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    engine.close()
    engine.close()
    assert engine.status().state == "stopped"


def test_crash_of_the_engine_thread_gives_everybody_an_outcome(bench: Bench) -> None:
    gate = Gate()

    def crash(_: list[str]) -> None:
        gate()
        raise SystemExit("secret internals")  # not an Exception: no batch may swallow it

    bench.model.on_answer = crash
    running = bench.engine.ask(Question(text="why"))
    gate.wait_until_reached()
    futures = [
        running,
        bench.engine.ask(Question(text="why")),
        bench.engine.add(FACTS),
        bench.engine.remove(["d0"]),
        bench.engine.list_namespaces(),
    ]
    gate.open()
    for future in futures:
        error = future.exception(WAIT_S)
        assert isinstance(error, EngineFailed)
        assert "secret" not in str(error)
    bench.engine.close()
    assert bench.engine.status().state == "failed"
    with pytest.raises(NotReady, match="failed"):
        bench.engine.ask(Question(text="why"))


def test_bank_that_cannot_follow_the_store_stops_the_engine(bench: Bench) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("shapes do not belong together")

    serving = bench.engine._thread.serving
    assert serving is not None
    serving.bank.apply = refuse  # type: ignore[method-assign]
    error = bench.engine.add(FACTS).exception(WAIT_S)
    assert isinstance(error, EngineFailed)
    bench.engine.close()
    assert bench.engine.status().state == "failed"


def test_idle_engine_is_not_standing_still(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.learn(FACTS[0])
    bench.clock.turn(1000.0)
    scheduler, begins_to_wait = bench.engine._scheduler, Event()
    wait = scheduler._wait

    def tell_then_wait(wake_at: float) -> None:
        begins_to_wait.set()
        wait(wake_at)

    monkeypatch.setattr(scheduler, "_wait", tell_then_wait)
    outcome(bench.engine.list_namespaces())
    assert begins_to_wait.wait(WAIT_S)
    with scheduler._changed:  # free only once the engine thread waits
        assert scheduler.is_waiting
    assert bench.engine.status().last_step_age_s == 0.0


def test_busy_engine_shows_since_when(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_answer = gate
    future = bench.engine.ask(Question(text="why"))
    gate.wait_until_reached()
    bench.clock.turn(30.0)
    assert bench.engine.status().last_step_age_s == 30.0
    gate.open()
    outcome(future)


def test_status_counts_documents_chunks_and_bytes(bench: Bench) -> None:
    bench.learn(*FACTS)
    status = bench.engine.status()
    assert (status.num_documents, status.num_chunks, status.model) == (9, 9, "fake")
    assert status.bank_bytes > 0


def test_documents_are_listed_page_by_page(bench: Bench) -> None:
    bench.learn(*FACTS)

    def page(cursor: str | None) -> tuple[list[str], str | None]:
        listed = outcome(
            bench.engine.list_documents(namespace="default", limit=6, cursor=cursor, filter={})
        )
        return [info.id for info in listed.documents], listed.next_cursor

    first, cursor = page(None)
    second, end = page(cursor)
    assert first + second == [document.id for document in FACTS]
    assert end is None
