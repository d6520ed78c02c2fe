"""Jobs in a whole engine: accepted at once, learned through the lane, given back when it stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.errors import InvalidInput, JobFinished, JobNotFound, NotReady, StoreError
from mac_core.memory.sqlite_jobs import SqliteJobStore
from mac_core.types import Document, Job, Question
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import WAIT_S, FakeModel, Gate, open_failing_store

TEXTS = [Document(text=f"The code of vault {i} is Alpha{i}. Keep it.") for i in range(9)]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        Event().wait(0.01)
    raise AssertionError("waited in vain")


def submit(bench: Bench, *documents: Document) -> Job:
    wait_for(lambda: bench.engine.jobs._store is not None)
    return outcome(bench.engine.jobs.submit(documents))


def get(bench: Bench, job: Job) -> Job:
    return outcome(bench.engine.jobs.get(job.id))


def finished(bench: Bench, job: Job) -> Job:
    wait_for(lambda: get(bench, job).state not in ("queued", "running"))
    return get(bench, job)


def test_a_job_is_learned_and_tells_what_became_of_each_document(bench: Bench) -> None:
    job = submit(bench, TEXTS[0], Document(id="blank", text="  "), Document(id="x", text="Rain."))
    assert (job.state, job.num_documents) == ("queued", 3)
    done = finished(bench, job)
    assert (done.state, done.attempts, done.reason) == ("done", 1, None)
    assert [result.status for result in done.results] == ["inserted", "failed", "inserted"]
    assert (done.results[1].id, done.results[1].error) == ("blank", "InvalidInput")
    assert done.bank_version == bench.engine.bank_version("default")
    assert bench.ask("What is the code of vault 0?").text == "Alpha0"


def test_a_job_of_which_nothing_can_be_learned_has_failed(bench: Bench) -> None:
    job = finished(bench, submit(bench, Document(id="blank", text=" ")))
    assert (job.state, job.attempts) == ("failed", 1)


def test_a_job_learned_before_is_unchanged(bench: Bench) -> None:
    finished(bench, submit(bench, *TEXTS[:3]))
    again = finished(bench, submit(bench, *TEXTS[:3]))
    assert {result.status for result in again.results} == {"unchanged"}
    assert bench.engine.status().num_documents == 3


def test_status_shows_the_backlog_and_the_outcomes(bench: Bench) -> None:
    finished(bench, submit(bench, TEXTS[0]))
    wait_for(lambda: bench.engine.status().jobs["done"] == 1)
    assert bench.engine.status().jobs_ended["done"] == 1


def test_a_running_job_leaves_room_for_questions(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench(model=FakeModel())
    bench.learn("The capital of France is Paris.")
    bench.model.on_amortize = gate
    job = submit(bench, *TEXTS)
    gate.wait_until_reached()
    answer = bench.engine.ask(Question(text="What is the capital of France?"))
    bench.model.on_amortize = lambda _: None
    gate.open()
    assert outcome(answer).text == "Paris"
    assert finished(bench, job).state == "done"
    assert max(len(chunks) for chunks in bench.model.amortized) <= 4  # one lane's batch at a time


def test_cancelling_a_running_job_keeps_what_was_learned_and_begins_no_more(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_amortize = gate
    job = submit(bench, *TEXTS)
    gate.wait_until_reached()
    assert outcome(bench.engine.jobs.cancel(job.id)).state == "cancelled"
    gate.open()
    wait_for(lambda: len(get(bench, job).results) == 4)
    finished(bench, submit(bench, Document(text="Rain.")))  # the worker has gone on
    assert (get(bench, job).state, len(get(bench, job).results)) == ("cancelled", 4)
    assert bench.engine.status().num_documents == 5
    with pytest.raises(JobFinished):
        outcome(bench.engine.jobs.cancel(job.id))


def test_draining_finishes_the_batch_and_a_restart_the_job(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench()
    bench.model.on_amortize = gate
    job = submit(bench, *TEXTS)
    gate.wait_until_reached()
    bench.engine.jobs.stop()
    with pytest.raises(NotReady, match="draining"):
        bench.engine.jobs.submit(TEXTS)
    gate.open()
    assert bench.engine.drain(timeout_s=WAIT_S)
    bench.engine.close()
    again = make_bench()
    wait_for(lambda: again.engine.jobs._store is not None)
    done = finished(again, job)
    assert (done.state, done.attempts) == ("done", 1)  # an orderly stop is no failed attempt
    assert [result.status for result in done.results] == ["inserted"] * 9
    assert sum(len(chunks) for chunks in again.model.amortized) == 5


def test_jobs_of_a_killed_process_are_learned_after_its_restart(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    (tmp_path / "bank").mkdir()
    left = SqliteJobStore(tmp_path / "bank")
    left.submit("j", "default", TEXTS[:2], max_unfinished=9)
    left.claim("gone", lease_s=3600.0, max_attempts=3)
    left.close()
    bench = make_bench()
    wait_for(lambda: bench.engine.jobs._store is not None)
    wait_for(lambda: outcome(bench.engine.jobs.get("j")).state == "done")
    assert outcome(bench.engine.jobs.get("j")).attempts == 2


def test_a_strange_namespace_is_refused_when_the_job_is_submitted(bench: Bench) -> None:
    submit(bench, TEXTS[0])
    with pytest.raises(InvalidInput, match="the namespace"):
        outcome(bench.engine.jobs.submit(TEXTS, namespace="a\nb"))


def test_an_unknown_job_is_not_found(bench: Bench) -> None:
    submit(bench, TEXTS[0])
    with pytest.raises(JobNotFound, match="'none'"):
        outcome(bench.engine.jobs.get("none"))


def test_the_list_shows_the_newest_first(bench: Bench) -> None:
    made = [submit(bench, document) for document in TEXTS[:3]]
    page = outcome(bench.engine.jobs.list(limit=2))
    assert [job.id for job in page.jobs] == [made[2].id, made[1].id]
    assert page.next_cursor is not None


def test_jobs_are_refused_before_the_engine_is_ready_and_after_it_has_stopped(
    tmp_path: Path,
) -> None:
    engine = Engine(
        bundle=Path("fake"),
        store_directory=tmp_path,
        config=EngineConfig(),
        load=FakeModel,
        open_store=lambda _: open_failing_store(tmp_path),
    )
    with pytest.raises(NotReady, match="starting"):
        engine.jobs.submit(TEXTS)
    engine.start()
    assert engine.wait_until_ready(timeout_s=WAIT_S)
    wait_for(lambda: engine.jobs._store is not None)
    engine.close()
    with pytest.raises(NotReady):
        engine.jobs.get("x")


def test_jobs_of_an_engine_that_has_failed_are_left_to_others(bench: Bench) -> None:
    def crash(_: list[str]) -> None:
        raise SystemExit("not an Exception: no batch may swallow it")

    wait_for(lambda: bench.engine.jobs._store is not None)
    bench.model.on_answer = crash
    bench.engine.ask(Question(text="why")).exception(WAIT_S)
    job = submit(bench, TEXTS[0])
    bench.engine.jobs._thread.join(WAIT_S)
    assert not bench.engine.jobs._thread.is_alive()  # else it claims and gives back for ever
    assert (get(bench, job).state, get(bench, job).attempts) == ("queued", 0)


def test_jobs_that_cannot_be_opened_leave_the_engine_at_work(make_bench: MakeBench) -> None:
    def refuse() -> SqliteJobStore:
        raise StoreError("the jobs are unreadable")

    bench = make_bench()
    bench.engine.close()
    engine = Engine(
        bundle=Path("fake"),
        store_directory=bench.store._path.parent,
        config=EngineConfig(),
        load=FakeModel,
        open_store=lambda _: open_failing_store(bench.store._path.parent),
        open_job_store=refuse,
    )
    engine.start()
    assert engine.wait_until_ready(timeout_s=WAIT_S)
    wait_for(lambda: isinstance(engine.jobs._problem, StoreError))
    with pytest.raises(StoreError, match="unreadable"):
        engine.jobs.submit(TEXTS)
    assert outcome(engine.add([TEXTS[0]]))[0].status == "inserted"
    engine.close()
