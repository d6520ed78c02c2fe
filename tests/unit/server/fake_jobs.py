"""Jobs without a store: kept in a dict, ended by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from mac_core.errors import JobFinished, JobNotFound
from mac_core.types import Document, Job, JobPage, JobState

T = TypeVar("T")
NOW = 1_790_000_000.0


class FakeJobs:
    """What `mac_core.engine.jobs.Jobs` is to HTTP."""

    def __init__(self) -> None:
        self.kept: dict[str, Job] = {}
        self.documents: dict[str, list[Document]] = {}
        self.refusal: Exception | None = None  # raised at once by submit

    def submit(self, documents: Sequence[Document], *, namespace: str = "default") -> Future[Job]:
        if self.refusal is not None:
            raise self.refusal
        job = Job(
            id=f"job{len(self.kept) + 1}", namespace=namespace, state="queued",
            num_documents=len(documents), attempts=0, reason=None, created_at=NOW, updated_at=NOW,
            results=(),
        )  # fmt: skip
        self.kept[job.id] = job
        self.documents[job.id] = list(documents)
        return _settled(lambda: job)

    def change(self, job_id: str, **values: Any) -> None:
        self.kept[job_id] = replace(self.kept[job_id], **values)

    def get(self, job_id: str) -> Future[Job]:
        return _settled(lambda: self._get(job_id))

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> Future[JobPage]:
        found = [job for job in reversed(self.kept.values()) if state in (None, job.state)]
        page = JobPage(jobs=tuple(found[:limit]), next_cursor="c" if len(found) > limit else None)
        return _settled(lambda: page)

    def cancel(self, job_id: str) -> Future[Job]:
        def cancel() -> Job:
            if self._get(job_id).state not in ("queued", "running"):
                raise JobFinished(job_id=job_id, state=self._get(job_id).state)
            self.change(job_id, state="cancelled")
            return self._get(job_id)

        return _settled(cancel)

    def _get(self, job_id: str) -> Job:
        if job_id not in self.kept:
            raise JobNotFound(job_id=job_id)
        return self.kept[job_id]


def _settled(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future
