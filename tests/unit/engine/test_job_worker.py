"""What a worker makes of a lane that is full, slow, broken or gone: retries, dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest

from mac_core.config import EngineConfig
from mac_core.engine.job_worker import JobWorker
from mac_core.errors import EngineFailed, InvalidInput, NotReady, Overloaded, StoreError
from mac_core.memory.sqlite_jobs import SqliteJobStore
from mac_core.types import Document, DocumentResult
from tests.unit.engine.fakes import HandClock

DOCUMENTS = [Document(id=name, text=name) for name in "abcde"]
Judge = Callable[[Document], Exception | None]


class Lane:
    """`Engine.add` that answers at once, as `judge` says."""

    def __init__(self) -> None:
        self.judge: Judge = lambda _: None
        self.refusals: list[Exception] = []
        self.added: list[list[str | None]] = []
        self.before: Callable[[], object] = lambda: None

    def __call__(
        self, documents: Sequence[Document], *, namespace: str
    ) -> Future[list[DocumentResult]]:
        if self.refusals:
            raise self.refusals.pop(0)
        self.before()
        self.added.append([document.id for document in documents])
        future: Future[list[DocumentResult]] = Future()
        future.set_result([self._result(document) for document in documents])
        return future

    def _result(self, document: Document) -> DocumentResult:
        error = self.judge(document)
        return DocumentResult(
            id=document.id or "", status="failed" if error else "inserted", num_chunks=1,
            num_tokens=1, bank_version=len(self.added), error=error,
        )  # fmt: skip


class Desk:
    """A worker with a store, a lane and a clock that a test may touch."""

    def __init__(self, directory: Path) -> None:
        self.clock, self.lane = HandClock(), Lane()
        self.stopping, self.ended = Event(), Counter[str]()
        self.store = SqliteJobStore(directory, clock=lambda: self.clock.epoch_s)
        self.worker = self.make_worker("w")

    def make_worker(self, name: str, **options: float) -> JobWorker:
        given = {"max_batch_chunks": 2, "job_max_attempts": 2, "job_lease_s": 30.0} | options
        return JobWorker(
            name=name, store=self.store, add=self.lane, config=EngineConfig(**given),  # type: ignore[arg-type]
            stopping=self.stopping, ended=self.ended,
        )  # fmt: skip

    def submit(self, name: str = "j") -> None:
        self.store.submit(name, "default", DOCUMENTS, max_unfinished=9)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


def test_documents_go_to_the_lane_a_batch_at_a_time_in_order(desk: Desk) -> None:
    desk.submit()
    assert desk.worker.work()
    assert desk.lane.added == [["a", "b"], ["c", "d"], ["e"]]
    job = desk.store.get("j")
    assert (job.state, job.bank_version) == ("done", 3)
    assert desk.ended == {"done": 1}


def test_without_a_job_there_is_nothing_to_do(desk: Desk) -> None:
    assert not desk.worker.work()


def test_a_full_lane_is_waited_for(desk: Desk) -> None:
    desk.submit()
    desk.lane.refusals = [Overloaded(lane="documents", max_queued=1, retry_after_s=0.001)] * 3
    desk.worker.work()
    assert (desk.store.get("j").state, desk.store.get("j").attempts) == ("done", 1)


def test_a_document_that_is_at_fault_is_not_tried_again(desk: Desk) -> None:
    desk.submit()
    desk.lane.judge = lambda document: InvalidInput("blank") if document.id == "c" else None
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.results[2].error, job.results[2].detail) == (
        "done", "InvalidInput", "blank",
    )  # fmt: skip


def test_what_the_engine_failed_at_alone_is_tried_again_later(desk: Desk) -> None:
    desk.submit()
    desk.lane.judge = lambda document: EngineFailed("oops") if document.id == "b" else None
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.reason) == ("queued", "1 documents failed, the first: oops")
    assert not desk.worker.work()  # not at once
    desk.lane.judge = lambda _: None
    desk.lane.added.clear()
    desk.clock.turn(2.1)
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.attempts, desk.lane.added) == ("done", 2, [["b"]])
    assert [result.status for result in job.results] == ["inserted"] * 5
    assert desk.ended == {"retried": 1, "done": 1}


def test_a_job_that_keeps_failing_is_dead_with_its_reason(desk: Desk) -> None:
    desk.submit()
    desk.lane.judge = lambda document: EngineFailed("oops") if document.id == "b" else None
    desk.worker.work()
    desk.clock.turn(60)
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.reason) == ("dead", "1 documents failed, the first: oops")
    assert [result.status for result in job.results].count("inserted") == 4
    assert desk.ended == {"retried": 1, "dead": 1}
    desk.clock.turn(3600)
    assert not desk.worker.work()


def test_a_store_that_takes_nothing_ends_the_attempt_at_once(desk: Desk) -> None:
    desk.submit()
    desk.lane.judge = lambda _: StoreError("disk full")
    desk.worker.work()
    assert desk.lane.added == [["a", "b"]]
    assert desk.store.get("j").state == "queued"


def test_stopping_gives_the_job_back_after_the_batch_and_counts_no_attempt(desk: Desk) -> None:
    desk.submit()
    desk.lane.before = desk.stopping.set
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.attempts, len(job.results)) == ("queued", 0, 2)


def test_an_engine_that_stops_gives_the_job_back(desk: Desk) -> None:
    desk.submit()
    desk.lane.refusals = [NotReady("stopped")]
    desk.worker.work()
    assert (desk.store.get("j").state, desk.store.get("j").attempts) == ("queued", 0)


def test_a_job_that_another_took_over_is_left_alone(desk: Desk) -> None:
    desk.submit()

    def lose() -> None:
        desk.clock.turn(31)
        desk.store.claim("other", lease_s=30.0, max_attempts=9)

    desk.lane.before = lose
    assert desk.worker.work()
    assert desk.lane.added == [["a", "b"]]
    assert (desk.store.get("j").state, desk.store.get("j").attempts) == ("running", 2)


def test_a_cancelled_job_is_left_and_what_was_learned_is_told(desk: Desk) -> None:
    desk.submit()
    desk.lane.before = lambda: desk.store.cancel("j")
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, len(job.results), desk.lane.added) == ("cancelled", 2, [["a", "b"]])


def test_a_long_batch_renews_its_lease(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.submit()
    slow: Future[list[DocumentResult]] = Future()
    renewed: list[object] = []
    renew = desk.store.renew

    def note(*arguments: object, **options: object) -> bool:
        renewed.append(options.get("results"))
        return renew(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.store, "renew", note)

    def add(documents: Sequence[Document], *, namespace: str) -> Future[list[DocumentResult]]:
        desk.stopping.set()  # one batch is enough
        return slow

    config = EngineConfig(max_batch_chunks=8, job_lease_s=0.03)
    worker = JobWorker(
        name="w", store=desk.store, add=add, config=config, stopping=desk.stopping, ended=desk.ended
    )
    monkeypatch.setattr(slow, "result", _late(slow, desk.lane(DOCUMENTS, namespace="x"), renewed))
    worker.work()
    assert renewed[:2] == [None, None]
    assert desk.store.get("j").state == "done"


def _late(
    slow: Future[list[DocumentResult]],
    answer: Future[list[DocumentResult]],
    renewed: list[object],
) -> Callable[[float], list[DocumentResult]]:
    """The result only once the lease was renewed twice."""

    def result(timeout: float) -> list[DocumentResult]:
        if len(renewed) < 2:
            raise TimeoutError
        slow.set_result([])
        return answer.result()

    return result


def test_an_unforeseen_failure_is_an_attempt_without_internals(desk: Desk) -> None:
    desk.submit()
    desk.lane.refusals = [RuntimeError("secret")]
    desk.worker.work()
    job = desk.store.get("j")
    assert (job.state, job.reason) == ("queued", "the job failed: RuntimeError")


def test_a_job_store_that_is_away_for_a_moment_gets_the_job_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.submit()
    desk.lane.judge = lambda _: StoreError("away")
    release, failures = desk.store.release, [StoreError("away")]

    def flaky(*arguments: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return release(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.store, "release", flaky)
    monkeypatch.setattr("mac_core.engine.job_worker.RETRY_RELEASE_S", 0.001)
    desk.worker.work()
    assert desk.store.get("j").state == "queued"
