"""Jobs of all servers on one Redis: any of them claims what waits, and what a lost one left.

Every key has the hash tag of the store's own keys, so that each script finds all in one slot of a
cluster. Leases are measured by Redis's clock; the servers' own may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal
from urllib.parse import quote, unquote

from redis.commands.core import Script

from mac_core.errors import JobFinished, JobNotFound, Overloaded, StoreError
from mac_core.memory import redis_job_scripts as scripts
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
from mac_core.memory.redis_client import Availability, connect, translating
from mac_core.memory.redis_cluster import ask_all
from mac_core.memory.redis_url import public_name
from mac_core.types import Document, Job, JobPage, JobResult, JobState

PREFIX = "{mac}:jobs"
PARTS = ("last", "order", "marks", "documents", "results", "reasons", "ready", "due", "ended")
KEYS = tuple(f"{PREFIX}:{name}" for name in (*PARTS, *(f"in:{state}" for state in STATES)))
PURGED_AT_ONCE = 200


class RedisJobStore:
    """A `JobStore` in Redis."""

    def __init__(self, url: str, *, clock: Any = None) -> None:
        """
        Args:
            clock: seconds since the epoch; None: Redis's own.

        Raises:
            StoreError: the URL is no Redis URL, or nothing answers there.
        """
        self._name = public_name(url)
        self._clock = clock
        self._availability = Availability()
        self._is_closed = False
        self._client = connect(url)
        texts = ("SUBMIT", "CLAIM", "RENEW", "FINISH", "RELEASE", "CANCEL", "GET", "LIST", "PURGE")
        self._scripts: dict[str, Script] = {
            name: self._client.register_script(getattr(scripts, name)) for name in texts
        }

    def submit(
        self, job_id: str, namespace: str, documents: Sequence[Document], *, max_unfinished: int
    ) -> Job:
        text = encode_documents(documents)
        with self._translating("be written"):
            rest = f"{len(documents)} {quote(namespace, safe='')}"
            found = self._run("SUBMIT", job_id, text, rest, max_unfinished)
        if not found:
            raise Overloaded(lane="jobs", max_queued=max_unfinished, retry_after_s=RETRY_AFTER_S)
        return _job_of(found)

    def claim(self, worker: str, *, lease_s: float, max_attempts: int) -> ClaimedJob | None:
        with self._translating("be written"):
            found = self._run("CLAIM", worker, lease_s, max_attempts)
        if not found:
            return None
        return ClaimedJob(job=_job_of(found[:4]), documents=decode_documents(found[4]))

    def renew(
        self,
        job_id: str,
        worker: str,
        *,
        lease_s: float,
        results: Sequence[JobResult] | None = None,
    ) -> bool:
        text = "" if results is None else encode_results(results)
        with self._translating("be written"):
            return bool(self._run("RENEW", job_id, worker, lease_s, text))

    def finish(
        self,
        job_id: str,
        worker: str,
        state: Literal["done", "failed"],
        *,
        results: Sequence[JobResult],
    ) -> bool:
        with self._translating("be written"):
            return bool(self._run("FINISH", job_id, worker, state, encode_results(results)))

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
        arguments = (job_id, worker, reason, delay_s, max_attempts, int(is_attempt))
        with self._translating("be written"):
            found = self._run("RELEASE", *arguments)
        return next((state for state in STATES if state.encode() == found), None)

    def cancel(self, job_id: str) -> Job:
        with self._translating("be written"):
            before, found = self._run("CANCEL", job_id)
        if not before:
            raise JobNotFound(job_id=job_id)
        if before.decode() in ENDED:
            raise JobFinished(job_id=job_id, state=before.decode())
        return _job_of(found)

    def get(self, job_id: str) -> Job:
        with self._translating("be read"):
            found = self._run("GET", job_id)
        if not found:
            raise JobNotFound(job_id=job_id)
        return _job_of(found[0])

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> JobPage:
        check_limit(limit)
        before = "inf" if cursor is None else str(decode_cursor(cursor))
        with self._translating("be read"):
            found = self._run("LIST", state or "", before, limit + 1)
        page = found[:limit]
        return JobPage(
            jobs=tuple(_job_of(parts) for parts in page),
            next_cursor=encode_cursor(_position_of(page[-1])) if len(found) > limit else None,
        )

    def counts(self) -> dict[JobState, int]:
        questions = [("ZCARD", f"{PREFIX}:in:{state}") for state in STATES]
        with self._translating("be read"):
            return dict(zip(STATES, map(int, ask_all(self._client, questions)), strict=True))

    def purge(self, *, older_than_s: float) -> int:
        total, gone = 0, PURGED_AT_ONCE
        while gone == PURGED_AT_ONCE:  # in parts, because nobody is served during a script
            with self._translating("be written"):
                gone = int(self._run("PURGE", older_than_s, PURGED_AT_ONCE))
            total += gone
        return total

    def close(self) -> None:
        self._is_closed = True
        self._client.close()

    def _run(self, name: str, *arguments: object) -> Any:
        now = "" if self._clock is None else repr(self._clock())
        words = [word if isinstance(word, str) else repr(word) for word in arguments]
        # Surrogates pass: an id that no request can name is simply not found.
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        return self._scripts[name](keys=KEYS, args=[now, *encoded])

    def _translating(self, outcome: str) -> AbstractContextManager[None]:
        if self._is_closed:
            raise StoreError(f"the jobs in {self._name} could not {outcome}: the store is closed")
        return translating(self._name, outcome, self._availability)


def _job_of(parts: Sequence[Any]) -> Job:
    job_id, mark, results, reason = parts
    state, attempts, _, _, created_at, updated_at, num_documents, name = mark.decode().split(" ")
    return Job(
        id=job_id.decode(),
        namespace=unquote(name),
        state=state,
        num_documents=int(num_documents),
        attempts=int(attempts),
        reason=reason.decode() if reason else None,
        created_at=float(created_at),
        updated_at=float(updated_at),
        results=decode_results(results),
    )


def _position_of(parts: Sequence[Any]) -> int:
    return int(parts[1].split(b" ")[3])
