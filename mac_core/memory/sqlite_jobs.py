"""Jobs of a server with a directory of its own, in a database beside the bank's.

A database of its own, so that accepting a job never waits for the bank's writes, nor they for it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from mac_core.errors import JobFinished, JobNotFound, Overloaded, StoreError
from mac_core.memory.cursors import decode_cursor, encode_cursor
from mac_core.memory.jobs import (
    ENDED,
    RETRY_AFTER_S,
    STATES,
    ClaimedJob,
    check_limit,
    decode_documents,
    decode_results,
    encode_documents,
    encode_results,
)
from mac_core.memory.sqlite_writing import transaction, translating
from mac_core.types import Document, Job, JobPage, JobResult, JobState

DATABASE = "jobs.sqlite3"
SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 5_000
SCHEMA = f"""
BEGIN;
CREATE TABLE jobs (
    position INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
    id TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    state TEXT NOT NULL,
    num_documents INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    results TEXT NOT NULL,
    worker TEXT NOT NULL DEFAULT '',
    due_at REAL NOT NULL DEFAULT 0,  -- running: the lease's end; queued: nobody takes it before
    documents TEXT  -- NULL: the job has ended
);
CREATE INDEX jobs_by_state ON jobs (state, position);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
COLUMNS = (
    "id, namespace, state, num_documents, attempts, reason, created_at, updated_at, results, "
    "position"
)
END = "updated_at = :now, documents = NULL, due_at = 0"


class SqliteJobStore:
    """A `JobStore` in a directory whose lock the caller holds: one process at a time."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the jobs, creating the database when there is none.

        What is running was left behind by a process that is no more: it may be claimed at once.

        Args:
            clock: seconds since the epoch.

        Raises:
            StoreError: written by a newer version, or unusable.
        """
        self._path = directory / DATABASE
        self._clock = clock
        self._lock = RLock()
        with self._translating("be opened"):
            self._connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def submit(
        self, job_id: str, namespace: str, documents: Sequence[Document], *, max_unfinished: int
    ) -> Job:
        text, now = encode_documents(documents), self._clock()
        with self._writing():
            if not self._one(job_id):
                counts = self.counts()
                if counts["queued"] + counts["running"] >= max_unfinished:
                    raise Overloaded(
                        lane="jobs", max_queued=max_unfinished, retry_after_s=RETRY_AFTER_S
                    )
                self._connection.execute(
                    "INSERT INTO jobs (id, namespace, state, num_documents, attempts, created_at, "
                    "updated_at, results, documents) VALUES (?, ?, 'queued', ?, 0, ?, ?, '[]', ?)",
                    (job_id, namespace, len(documents), now, now, text),
                )
            return self.get(job_id)

    def claim(self, worker: str, *, lease_s: float, max_attempts: int) -> ClaimedJob | None:
        now = self._clock()
        with self._writing():
            self._take_from_the_lost(now, max_attempts)
            rows = self._query(
                "SELECT id, documents FROM jobs WHERE state = 'queued' AND due_at <= ? "
                "ORDER BY position LIMIT 1",
                (now,),
            )
            if not rows:
                return None
            job_id, documents = rows[0]
            self._connection.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker = ?, "
                "updated_at = ?, due_at = ? WHERE id = ?",
                (worker, now, now + lease_s, job_id),
            )
            return ClaimedJob(job=self.get(job_id), documents=decode_documents(documents))

    def renew(
        self,
        job_id: str,
        worker: str,
        *,
        lease_s: float,
        results: Sequence[JobResult] | None = None,
    ) -> bool:
        now = self._clock()
        with self._writing():
            if results is not None:
                self._update(
                    "results = :results, updated_at = :now",
                    "worker = :worker AND state IN ('running', 'cancelled')",
                    id=job_id, worker=worker, now=now, results=encode_results(results),
                )  # fmt: skip
            return self._update(
                "due_at = :due_at", "worker = :worker AND state = 'running'",
                id=job_id, worker=worker, due_at=now + lease_s,
            )  # fmt: skip

    def finish(
        self,
        job_id: str,
        worker: str,
        state: Literal["done", "failed"],
        *,
        results: Sequence[JobResult],
    ) -> bool:
        with self._writing():
            return self._update(
                f"{END}, state = :state, results = :results",
                "worker = :worker AND state IN ('running', :state)",
                id=job_id, worker=worker, state=state, now=self._clock(),
                results=encode_results(results),
            )  # fmt: skip

    def release(
        self,
        job_id: str,
        worker: str,
        *,
        reason: str,
        delay_s: float,
        max_attempts: int,
        is_attempt: bool = True,
    ) -> JobState | None:
        now = self._clock()
        given = {"id": job_id, "worker": worker, "reason": reason, "now": now}
        is_held = "worker = :worker AND state = 'running'"
        with self._writing():
            if is_attempt and self._update(
                f"{END}, state = 'dead', reason = :reason",
                f"{is_held} AND attempts >= :most", **given, most=max_attempts,
            ):  # fmt: skip
                return "dead"
            is_released = self._update(
                "state = 'queued', reason = :reason, worker = '', updated_at = :now, "
                "due_at = :due_at, attempts = attempts - :uncounted",
                is_held, **given, due_at=now + delay_s, uncounted=int(not is_attempt),
            )  # fmt: skip
        return "queued" if is_released else None

    def cancel(self, job_id: str) -> Job:
        with self._writing():
            job = self.get(job_id)
            if job.state in ENDED:
                raise JobFinished(job_id=job_id, state=job.state)
            self._update(f"{END}, state = 'cancelled'", "TRUE", id=job_id, now=self._clock())
            return self.get(job_id)

    def get(self, job_id: str) -> Job:
        rows = self._one(job_id)
        if not rows:
            raise JobNotFound(job_id=job_id)
        return _job_of(rows[0])

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> JobPage:
        check_limit(limit)
        before = 2**62 if cursor is None else decode_cursor(cursor)
        rows = self._query(
            f"SELECT {COLUMNS} FROM jobs WHERE position < ? AND (? IS NULL OR state = ?) "
            "ORDER BY position DESC LIMIT ?",
            (before, state, state, limit + 1),
        )
        page = rows[:limit]
        return JobPage(
            jobs=tuple(_job_of(row) for row in page),
            next_cursor=encode_cursor(page[-1][-1]) if len(rows) > limit else None,
        )

    def counts(self) -> dict[JobState, int]:
        found = dict(self._query("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        return {state: int(found.get(state, 0)) for state in STATES}

    def purge(self, *, older_than_s: float) -> int:
        marks = ", ".join("?" for _ in ENDED)
        with self._writing():
            done = self._connection.execute(
                f"DELETE FROM jobs WHERE state IN ({marks}) AND updated_at < ?",
                (*ENDED, self._clock() - older_than_s),
            )
            return done.rowcount

    def close(self) -> None:
        with self._translating("be closed"):
            self._connection.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by a newer version (schema {found}); "
                f"this one reads up to {SCHEMA_VERSION}"
            )
        if not found:
            connection.executescript(SCHEMA)
        connection.execute("UPDATE jobs SET due_at = 0 WHERE state = 'running'")

    def _take_from_the_lost(self, now: float, max_attempts: int) -> None:
        """Jobs whose lease has run out wait again, or are dead."""
        lost = "reason = 'its worker was lost in attempt ' || attempts"
        is_lost = "state = 'running' AND due_at <= :now"
        given = {"now": now, "most": max_attempts}
        self._connection.execute(
            f"UPDATE jobs SET {END}, state = 'dead', {lost} WHERE {is_lost} AND attempts >= :most",
            given,
        )
        self._connection.execute(
            f"UPDATE jobs SET state = 'queued', {lost}, updated_at = :now WHERE {is_lost}", given
        )

    def _update(self, change: str, condition: str, **given: object) -> bool:
        """Change one job if the condition holds; whether it did."""
        done = self._connection.execute(
            f"UPDATE jobs SET {change} WHERE id = :id AND {condition}", given
        )
        return done.rowcount == 1

    def _one(self, job_id: str) -> Any:
        return self._query(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,))

    def _query(self, statement: str, values: Sequence[object] = ()) -> Any:
        with self._translating("be read"), self._lock:
            return self._connection.execute(statement, tuple(values)).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction of one thread: committed and synced at the end, or rolled back whole."""
        with self._translating("be written"), self._lock, transaction(self._connection):
            yield

    def _translating(self, outcome: str) -> AbstractContextManager[None]:
        return translating(f"the jobs in {self._path} could not {outcome}")


def _job_of(row: Sequence[Any]) -> Job:
    job_id, namespace, state, num_documents, attempts, reason, created_at, updated_at, *rest = row
    return Job(
        id=job_id,
        namespace=namespace,
        state=state,
        num_documents=num_documents,
        attempts=attempts,
        reason=reason,
        created_at=created_at,
        updated_at=updated_at,
        results=decode_results(rest[0]),
    )
