"""What every job store means, on each of them: SQLite in a directory, and a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mac_core.errors import InvalidInput, JobFinished, JobNotFound, Overloaded, StoreError
from mac_core.memory.jobs import JobStore, with_ids
from mac_core.memory.opening import open_job_store
from mac_core.memory.redis_jobs import KEYS, RedisJobStore
from mac_core.memory.sqlite_jobs import SqliteJobStore
from mac_core.types import Document, JobResult, JobState

LEASE_S = 30.0
DOCUMENTS = (
    Document(id="a", text="one", metadata={"n": 1, "x": None}, published_at=5.5, ttl_s=9.0),
    Document(id="b", text="two \u4e2d {} \x00", title="T", on_conflict="skip"),
)
RESULTS = (JobResult(id="a", status="inserted", num_chunks=1, num_tokens=3, bank_version=7),)


class Clock:
    """Seconds since the epoch, turned by hand."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.25

    def __call__(self) -> float:
        return self.now


OpenJobs = Callable[[], JobStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "redis", pytest.param("redis_cluster", marks=pytest.mark.slow)])
def open_jobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> OpenJobs:
    if request.param != "sqlite":
        url = request.getfixturevalue(f"{request.param}_url")
        return lambda: RedisJobStore(url, clock=clock)
    return lambda: SqliteJobStore(tmp_path, clock=clock)


@pytest.fixture
def jobs(open_jobs: OpenJobs) -> Iterator[JobStore]:
    opened = open_jobs()
    yield opened
    opened.close()


def submit(jobs: JobStore, *names: str) -> None:
    for name in names:
        jobs.submit(name, "default", DOCUMENTS, max_unfinished=100)


def claim(jobs: JobStore, worker: str = "w", max_attempts: int = 3) -> str | None:
    claimed = jobs.claim(worker, lease_s=LEASE_S, max_attempts=max_attempts)
    return None if claimed is None else claimed.job.id


def release(jobs: JobStore, name: str, **options: object) -> JobState | None:
    given = {"reason": "why", "delay_s": 0.0, "max_attempts": 3} | options
    return jobs.release(name, "w", **given)  # type: ignore[arg-type]


def test_a_submitted_job_waits_and_says_so(jobs: JobStore, clock: Clock) -> None:
    job = jobs.submit("j", "n/{ }", DOCUMENTS, max_unfinished=1)
    assert (job.id, job.namespace, job.state, job.num_documents) == ("j", "n/{ }", "queued", 2)
    assert (job.attempts, job.reason, job.results, job.bank_version) == (0, None, (), 0)
    assert job.created_at == job.updated_at == clock.now
    assert jobs.get("j") == job


def test_submitting_twice_keeps_one(jobs: JobStore) -> None:
    submit(jobs, "j", "j")
    assert jobs.counts()["queued"] == 1


def test_a_job_beyond_the_limit_is_refused_until_one_has_ended(jobs: JobStore) -> None:
    jobs.submit("a", "default", DOCUMENTS, max_unfinished=1)
    with pytest.raises(Overloaded, match="jobs queue holds its limit of 1"):
        jobs.submit("b", "default", DOCUMENTS, max_unfinished=1)
    jobs.cancel("a")
    assert jobs.submit("b", "default", DOCUMENTS, max_unfinished=1).state == "queued"


def test_a_text_that_no_file_can_hold_is_kept_for_its_own_failure(jobs: JobStore) -> None:
    odd = (Document(id="a", text="\ud800"),)
    jobs.submit("j", "default", odd, max_unfinished=9)
    claimed = jobs.claim("w", lease_s=LEASE_S, max_attempts=3)
    assert claimed is not None
    assert claimed.documents == odd


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_is_no_json_is_refused(jobs: JobStore, value: object) -> None:
    odd = (Document(id="a", text="x", metadata={"n": value}),)  # type: ignore[dict-item]
    with pytest.raises(InvalidInput, match="JSON"):
        jobs.submit("j", "default", odd, max_unfinished=9)


def test_the_oldest_is_claimed_first_with_its_documents_and_once(jobs: JobStore) -> None:
    submit(jobs, "b", "a")
    claimed = jobs.claim("w", lease_s=LEASE_S, max_attempts=3)
    assert claimed is not None
    assert (claimed.job.id, claimed.job.state, claimed.job.attempts) == ("b", "running", 1)
    assert claimed.documents == DOCUMENTS
    assert [claim(jobs), claim(jobs)] == ["a", None]


def test_many_workers_claim_each_job_once(jobs: JobStore) -> None:
    names = [f"j{i}" for i in range(20)]
    submit(jobs, *names)
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda i: claim(jobs, f"w{i}"), range(30)))
    assert sorted(filter(None, claimed)) == sorted(names)


def test_a_renewed_lease_holds_and_keeps_the_results(jobs: JobStore, clock: Clock) -> None:
    submit(jobs, "j")
    claim(jobs)
    clock.now += LEASE_S - 1
    assert jobs.renew("j", "w", lease_s=LEASE_S, results=RESULTS)
    clock.now += LEASE_S - 1
    assert jobs.renew("j", "w", lease_s=LEASE_S)
    assert claim(jobs, "other") is None
    assert (jobs.get("j").results, jobs.get("j").bank_version) == (RESULTS, 7)


def test_a_job_whose_lease_ran_out_is_anothers(jobs: JobStore, clock: Clock) -> None:
    submit(jobs, "j")
    claim(jobs)
    jobs.renew("j", "w", lease_s=LEASE_S, results=RESULTS)
    clock.now += LEASE_S + 0.001
    claimed = jobs.claim("other", lease_s=LEASE_S, max_attempts=3)
    assert claimed is not None
    assert (claimed.job.attempts, claimed.job.results) == (2, RESULTS)
    assert claimed.documents == DOCUMENTS
    assert jobs.get("j").reason == "its worker was lost in attempt 1"
    assert not jobs.renew("j", "w", lease_s=LEASE_S, results=())
    assert not jobs.finish("j", "w", "done", results=())
    assert release(jobs, "j") is None
    assert (jobs.get("j").state, jobs.get("j").results) == ("running", RESULTS)


def test_a_job_lost_in_its_last_attempt_is_dead_and_listed(jobs: JobStore, clock: Clock) -> None:
    submit(jobs, "j")
    for _ in range(2):
        claim(jobs, max_attempts=2)
        clock.now += LEASE_S + 1
    assert claim(jobs, max_attempts=2) is None
    (job,) = jobs.list(limit=9, state="dead").jobs
    assert (job.id, job.attempts, job.reason) == ("j", 2, "its worker was lost in attempt 2")


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_finished_job_keeps_its_results(jobs: JobStore, state: str) -> None:
    submit(jobs, "j")
    claim(jobs)
    for _ in range(2):  # a reply that was lost is asked for again
        assert jobs.finish("j", "w", state, results=RESULTS)  # type: ignore[arg-type]
    assert (jobs.get("j").state, jobs.get("j").results) == (state, RESULTS)
    assert claim(jobs) is None


def test_a_released_job_waits_its_delay(jobs: JobStore, clock: Clock) -> None:
    submit(jobs, "j")
    claim(jobs)
    assert release(jobs, "j", delay_s=5.0) == "queued"
    assert (jobs.get("j").state, jobs.get("j").reason) == ("queued", "why")
    assert claim(jobs) is None
    clock.now += 5.001
    assert claim(jobs) == "j"
    assert jobs.get("j").attempts == 2


def test_a_job_released_after_its_last_attempt_is_dead_with_the_reason(jobs: JobStore) -> None:
    submit(jobs, "j")
    claim(jobs)
    assert release(jobs, "j", max_attempts=1) == "dead"
    assert (jobs.get("j").state, jobs.get("j").reason) == ("dead", "why")
    assert claim(jobs) is None


def test_an_attempt_that_does_not_count_is_not_the_last(jobs: JobStore, clock: Clock) -> None:
    submit(jobs, "j")
    claim(jobs, max_attempts=1)
    assert release(jobs, "j", max_attempts=1, is_attempt=False) == "queued"
    assert jobs.get("j").attempts == 0
    clock.now += 0.001
    assert claim(jobs, max_attempts=1) == "j"


def test_a_waiting_job_is_cancelled(jobs: JobStore) -> None:
    submit(jobs, "j")
    assert jobs.cancel("j").state == "cancelled"
    assert claim(jobs) is None


def test_a_job_cancelled_while_it_waits_for_its_next_attempt_stays_so(
    jobs: JobStore, clock: Clock
) -> None:
    submit(jobs, "j")
    claim(jobs)
    release(jobs, "j", delay_s=5.0)
    jobs.cancel("j")
    clock.now += 60
    assert claim(jobs) is None
    assert jobs.get("j").state == "cancelled"


def test_the_worker_of_a_cancelled_job_is_told_and_its_results_are_kept(jobs: JobStore) -> None:
    submit(jobs, "j")
    claim(jobs)
    jobs.cancel("j")
    assert not jobs.renew("j", "w", lease_s=LEASE_S, results=RESULTS)
    assert not jobs.finish("j", "w", "done", results=RESULTS)
    assert (jobs.get("j").state, jobs.get("j").results) == ("cancelled", RESULTS)


def test_an_ended_job_cannot_be_cancelled(jobs: JobStore) -> None:
    submit(jobs, "j")
    jobs.cancel("j")
    with pytest.raises(JobFinished, match="'j' has ended: it is cancelled"):
        jobs.cancel("j")


@pytest.mark.parametrize("name", ["none", "\ud800", "", "a b"])
def test_an_unknown_job_is_not_found(jobs: JobStore, name: str) -> None:
    with pytest.raises((JobNotFound, InvalidInput)):
        jobs.get(name)
    with pytest.raises((JobNotFound, InvalidInput)):
        jobs.cancel(name)
    assert not jobs.renew("none", "w", lease_s=1.0)


def test_pages_list_the_newest_first_each_once(jobs: JobStore) -> None:
    submit(jobs, *"abcde")
    pages, cursor = [], None
    for _ in range(3):
        page = jobs.list(limit=2, cursor=cursor)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
    assert (pages, cursor) == ([["e", "d"], ["c", "b"], ["a"]], None)


def test_a_list_of_one_state_pages_too(jobs: JobStore) -> None:
    submit(jobs, *"abcd")
    jobs.cancel("b")
    first = jobs.list(limit=2, state="queued")
    second = jobs.list(limit=2, state="queued", cursor=first.next_cursor)
    assert [job.id for job in (*first.jobs, *second.jobs)] == ["d", "c", "a"]
    assert jobs.list(limit=2, state="dead").jobs == ()


def test_a_limit_below_one_and_a_strange_cursor_are_refused(jobs: JobStore) -> None:
    with pytest.raises(InvalidInput, match="limit=0"):
        jobs.list(limit=0)
    with pytest.raises(InvalidInput, match="cursor"):
        jobs.list(limit=1, cursor="x")


def test_counts_are_by_state(jobs: JobStore) -> None:
    submit(jobs, *"abc")
    claim(jobs)
    jobs.cancel("b")
    assert jobs.counts() == {
        "queued": 1, "running": 1, "done": 0, "failed": 0, "cancelled": 1, "dead": 0,
    }  # fmt: skip


def test_ended_jobs_are_forgotten_after_their_time_and_no_others(
    jobs: JobStore, clock: Clock
) -> None:
    submit(jobs, *"abc")
    claim(jobs)
    jobs.finish("a", "w", "done", results=RESULTS)
    clock.now += 100
    jobs.cancel("b")
    clock.now += 1
    assert jobs.purge(older_than_s=50) == 1
    assert [job.id for job in jobs.list(limit=9).jobs] == ["c", "b"]
    with pytest.raises(JobNotFound):
        jobs.get("a")
    assert sum(jobs.counts().values()) == 2


def test_jobs_are_there_when_the_store_is_opened_again(open_jobs: OpenJobs) -> None:
    first = open_jobs()
    submit(first, "a", "b")
    first.cancel("a")
    first.close()
    again = open_jobs()
    assert (again.get("a").state, claim(again)) == ("cancelled", "b")
    again.close()


def test_a_closed_store_says_so(open_jobs: OpenJobs) -> None:
    jobs = open_jobs()
    jobs.close()
    jobs.close()
    with pytest.raises(StoreError, match="clos"):
        jobs.get("a")


def test_a_restarted_process_claims_what_it_left_at_once(tmp_path: Path, clock: Clock) -> None:
    before = SqliteJobStore(tmp_path, clock=clock)
    submit(before, "j")
    claim(before)
    before.close()
    after = SqliteJobStore(tmp_path, clock=clock)
    assert claim(after, "other") == "j"
    assert after.get("j").reason == "its worker was lost in attempt 1"
    after.close()


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mac_core.memory.sqlite_jobs.SCHEMA_VERSION", 0)
    SqliteJobStore(tmp_path).close()  # what it makes says schema 1
    with pytest.raises(StoreError, match=r"newer version \(schema 1\)"):
        SqliteJobStore(tmp_path)


def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"jobs\.sqlite3 could not be opened"):
        SqliteJobStore(tmp_path)


def test_redis_measures_leases_by_its_own_clock(redis_url: str) -> None:
    jobs = open_job_store(redis_url)
    submit(jobs, "j")
    jobs.claim("w", lease_s=0.0, max_attempts=3)
    assert claim(jobs, "other") == "j"
    assert jobs.get("j").created_at > 1_700_000_000
    jobs.close()


def test_redis_keeps_all_jobs_in_the_slot_of_the_stores_own_keys(redis_url: str) -> None:
    from redis import Redis
    from redis.cluster import key_slot

    assert {key_slot(key.encode()) for key in KEYS} == {key_slot(b"{mac}:schema")}
    jobs = open_job_store(redis_url)
    submit(jobs, "j")
    claim(jobs)
    jobs.close()
    with Redis.from_url(redis_url) as client:
        assert {key.decode() for key in client.scan_iter("*")} <= set(KEYS)


def test_a_url_with_a_directory_opens_jobs_there(tmp_path: Path) -> None:
    jobs = open_job_store(f"sqlite:///{tmp_path}")
    submit(jobs, "j")
    jobs.close()
    assert (tmp_path / "jobs.sqlite3").is_file()


def test_a_document_without_an_id_gets_the_one_that_learning_would_give_it() -> None:
    texts = [Document(text=" a  b "), Document(text="x", id="own"), Document(text="a b")]
    first, own, same = with_ids("default", texts)
    assert (own.id, first.id) == ("own", same.id)
    assert first.id != with_ids("other", texts)[0].id
