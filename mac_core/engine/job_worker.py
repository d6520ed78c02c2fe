"""Works on one job after the other: feeds its documents to the ingest lane, a few at a time.

Learns nothing itself and owns no thread. A job is tried again for what the server did wrong (store,
engine), never for what a document is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Event
from typing import Protocol

from mac_core.config import EngineConfig
from mac_core.errors import NotReady, Overloaded, StoreError
from mac_core.memory.jobs import ClaimedJob, JobStore
from mac_core.types import Document, DocumentResult, Job, JobResult

logger = logging.getLogger(__name__)

TRIED_AGAIN = ("StoreError", "EngineFailed")
RENEWALS = 3  # in the time of one lease
FIRST_DELAY_S, MAX_DELAY_S = 2.0, 60.0  # before the next attempt; doubled with each
RETRY_RELEASE_S = 1.0


class AddDocuments(Protocol):
    """`Engine.add`."""

    def __call__(
        self, documents: Sequence[Document], *, namespace: str
    ) -> Future[list[DocumentResult]]: ...


class NoLongerOurs(Exception):
    """The job was cancelled, or its lease ran out and another server has it."""


class JobWorker:
    """Claims and finishes jobs. One thread at a time; it may block for as long as a job takes."""

    def __init__(
        self,
        *,
        name: str,
        store: JobStore,
        add: AddDocuments,
        config: EngineConfig,
        stopping: Event,
        ended: Counter[str],
    ) -> None:
        """
        Args:
            name: of this worker, like no other's.
            stopping: once set, the job at hand is given back after the documents in the lane.
            ended: counts what became of jobs.
        """
        self._name = name
        self._store = store
        self._add = add
        self._lease_s = config.job_lease_s
        self._max_attempts = config.job_max_attempts
        self._at_once = min(config.max_batch_chunks, config.max_queued_documents)
        self._stopping = stopping
        self._ended = ended

    def work(self) -> bool:
        """Work on one job, if one waits; whether there was one.

        Raises:
            StoreError: the job store does not answer.
        """
        claimed = self._store.claim(
            self._name, lease_s=self._lease_s, max_attempts=self._max_attempts
        )
        if claimed is None:
            return False
        job = claimed.job
        try:
            reason = self._learn_all(claimed)
        except NoLongerOurs:
            return True
        except (NotReady, CancelledError):
            self._give_back(job, "the server stopped", is_attempt=False)
        except StoreError as error:
            self._give_back(job, f"StoreError: {error}")
        except Exception as error:
            logger.exception("a job failed")
            self._give_back(job, f"the job failed: {type(error).__name__}")
        else:
            if reason is not None:
                self._give_back(job, reason)
        return True

    def _learn_all(self, claimed: ClaimedJob) -> str | None:
        """Learn what has no lasting result yet, and end the job; or why it is to be tried again."""
        job, results = claimed.job, list(claimed.job.results)
        places = [
            place
            for place in range(len(claimed.documents))
            if place >= len(results) or results[place].error in TRIED_AGAIN
        ]
        for start in range(0, len(places), self._at_once):
            if self._stopping.is_set():
                raise NotReady("the server is stopping")
            part = places[start : start + self._at_once]
            learned = self._learn(job, [claimed.documents[place] for place in part])
            for place, outcome in zip(part, learned, strict=True):
                results[place : place + 1] = [_kept(outcome)]
            self._renew(job, results)
            if all(results[place].error == "StoreError" for place in part):
                break  # the rest would fare no better
        failed = [result for result in results if result.error in TRIED_AGAIN]
        if failed:
            return f"{len(failed)} documents failed, the first: {failed[0].detail}"
        state = "failed" if all(result.error for result in results) else "done"
        if self._store.finish(job.id, self._name, state, results=results):  # type: ignore[arg-type]
            self._ended[state] += 1
        return None

    def _learn(self, job: Job, documents: Sequence[Document]) -> list[DocumentResult]:
        """Wait for room in the lane, then for the outcome; the lease is renewed meanwhile."""
        future = None
        while future is None:
            try:
                future = self._add(documents, namespace=job.namespace)
            except Overloaded as error:
                if self._stopping.wait(min(error.retry_after_s, self._lease_s / RENEWALS)):
                    raise NotReady("the server is stopping") from None
                self._renew(job)
        while True:
            try:
                return future.result(self._lease_s / RENEWALS)
            except FutureTimeoutError:
                if future.done():
                    raise
            try:
                self._renew(job)
            except NoLongerOurs:
                future.cancel()
                raise
            except StoreError:
                continue  # the lane's own outcome will say more

    def _renew(self, job: Job, results: Sequence[JobResult] | None = None) -> None:
        """Raises NoLongerOurs, StoreError."""
        if not self._store.renew(job.id, self._name, lease_s=self._lease_s, results=results):
            raise NoLongerOurs

    def _give_back(self, job: Job, reason: str, *, is_attempt: bool = True) -> None:
        """Release the job; while the job store is away, for as long as the lease may hold."""
        tries = max(1, round(self._lease_s / RETRY_RELEASE_S))
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (job.attempts - 1)) if is_attempt else 0.0
        for _ in range(tries):
            try:
                state = self._store.release(
                    job.id,
                    self._name,
                    reason=reason,
                    delay_s=delay_s,
                    max_attempts=self._max_attempts,
                    is_attempt=is_attempt,
                )
            except StoreError:
                if self._stopping.wait(RETRY_RELEASE_S):
                    return  # the lease says the rest
                continue
            if state is not None and is_attempt:
                self._ended["retried" if state == "queued" else "dead"] += 1
            return


def _kept(result: DocumentResult) -> JobResult:
    error = result.error
    return JobResult(
        id=result.id,
        status=result.status,
        num_chunks=result.num_chunks,
        num_tokens=result.num_tokens,
        bank_version=result.bank_version,
        error=None if error is None else type(error).__name__,
        detail=None if error is None else str(error),
    )
