"""What every job store means: documents that were accepted and are still to be learned.

Knows no database and learns nothing. A job holds a whole request, so that a server which takes it
over needs nothing else; learning it twice changes nothing, because its documents' ids are fixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

from mac_core.errors import InvalidInput
from mac_core.memory.records import document_id
from mac_core.types import Document, Job, JobPage, JobResult, JobState

STATES: tuple[JobState, ...] = ("queued", "running", "done", "failed", "cancelled", "dead")
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled", "dead")
RETRY_AFTER_S = 5.0  # for a caller whose job found no room


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job and what is to be learned; `job.results` tells how far an earlier attempt came."""

    job: Job
    documents: tuple[Document, ...]


class JobStore(Protocol):
    """Durable jobs in order of acceptance. Any thread; every call may block for seconds.

    A job is worked on by whoever claimed it, for as long as that one renews its lease in time; then
    it is anybody's. Every method raises StoreError when the store cannot do its work.
    """

    def submit(
        self, job_id: str, namespace: str, documents: Sequence[Document], *, max_unfinished: int
    ) -> Job:
        """Keep a job; durable when the call returns. A second time with the same id adds nothing.

        Raises:
            Overloaded: `max_unfinished` jobs are queued or running.
        """
        ...

    def claim(self, worker: str, *, lease_s: float, max_attempts: int) -> ClaimedJob | None:
        """Take the oldest job that waits; None: there is none. One job goes to one worker.

        Jobs whose lease has run out wait again; those that this befell in their last attempt are
        dead, with the reason.
        """
        ...

    def renew(
        self,
        job_id: str,
        worker: str,
        *,
        lease_s: float,
        results: Sequence[JobResult] | None = None,
    ) -> bool:
        """Hold the job for another `lease_s`; False: leave it alone, it is not the worker's now.

        Args:
            results: what became of the first documents so far; None: as they were. Those of a job
                that was cancelled meanwhile are kept as well.
        """
        ...

    def finish(
        self,
        job_id: str,
        worker: str,
        state: Literal["done", "failed"],
        *,
        results: Sequence[JobResult],
    ) -> bool:
        """End a job; False: it was not the worker's. Its documents are forgotten, not its results.

        Doing so twice is allowed.
        """
        ...

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
        """Give a job back: "queued", or "dead" after the last attempt; None: not the worker's.

        Args:
            delay_s: how long nobody shall take it.
            is_attempt: False: not its fault, so this one does not count.
        """
        ...

    def cancel(self, job_id: str) -> Job:
        """End a job; of one that is running, what has not begun is not learned.

        Raises:
            JobNotFound, JobFinished.
        """
        ...

    def get(self, job_id: str) -> Job:
        """
        Raises:
            JobNotFound: it is not there.
        """
        ...

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> JobPage:
        """One page, the newest first.

        Raises:
            InvalidInput: a limit below one, or a cursor that no page gave.
        """
        ...

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        ...

    def purge(self, *, older_than_s: float) -> int:
        """Forget jobs that ended longer ago than that; how many."""
        ...

    def close(self) -> None:
        """Give everything back; closing twice is allowed."""
        ...


def with_ids(namespace: str, documents: Sequence[Document]) -> tuple[Document, ...]:
    """The documents, each with the id that it will have, however often it is learned."""
    return tuple(
        document if document.id else replace(document, id=document_id(namespace, document.text))
        for document in documents
    )


def check_limit(limit: int) -> None:
    """
    Raises:
        InvalidInput: it is below one.
    """
    if limit < 1:
        raise InvalidInput(f"limit={limit} is below 1")


def encode_documents(documents: Sequence[Document]) -> str:
    """
    Raises:
        InvalidInput: a value is no JSON.
    """
    try:
        # ASCII: a lone surrogate is the document's own fault, found when it is learned.
        return json.dumps([asdict(document) for document in documents], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a document cannot be kept as JSON: {error}") from error


def decode_documents(text: str | bytes) -> tuple[Document, ...]:
    return tuple(Document(**values) for values in json.loads(text))


def encode_results(results: Sequence[JobResult]) -> str:
    return json.dumps([asdict(result) for result in results])


def decode_results(text: str | bytes | None) -> tuple[JobResult, ...]:
    return tuple(JobResult(**values) for values in json.loads(text or "[]"))
