"""Queries and answers of `/jobs`, and how the engine's jobs become them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from mac_core.types import Job, JobResult, JobState
from server.problems import code_named
from server.responses import DocumentFailed, DocumentLearned, moment


class JobListQuery(BaseModel):
    """Paging and one state."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=200)
    cursor: str | None = Field(default=None, max_length=1024)
    state: JobState | None = None


class JobSummary(BaseModel):
    """A job without the outcomes of its documents."""

    id: str
    state: JobState = Field(
        description="queued, running; done: every document has its outcome; failed: none could be "
        "learned; dead: given up after the last attempt, see `reason`; cancelled"
    )
    namespace: str
    documents: int
    counts: dict[str, int] = Field(description="documents by outcome, so far")
    attempts: int
    reason: str | None = Field(description="why it is tried again, or is dead")
    created_at: datetime
    updated_at: datetime
    bank_version: int = Field(description="has seen all that was learned so far; 0: nothing yet")

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls.model_validate(_values(job))


class JobBody(JobSummary):
    """A job with the outcomes of its first documents, in the order of the request."""

    results: list[DocumentLearned | DocumentFailed]

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls.model_validate(_values(job) | {"results": [_result(r) for r in job.results]})


class JobList(BaseModel):
    """One page, the newest first; `next_cursor` is null on the last."""

    jobs: list[JobSummary]
    next_cursor: str | None


def _values(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "namespace": job.namespace,
        "documents": job.num_documents,
        "counts": Counter(result.status for result in job.results),
        "attempts": job.attempts,
        "reason": job.reason,
        "created_at": moment(job.created_at),
        "updated_at": moment(job.updated_at),
        "bank_version": job.bank_version,
    }


def _result(result: JobResult) -> DocumentLearned | DocumentFailed:
    if result.error is not None:
        code = code_named(result.error)
        return DocumentFailed(id=result.id or None, code=code, detail=result.detail or "")
    return DocumentLearned.model_validate(
        {
            "id": result.id,
            "status": result.status,
            "chunks": result.num_chunks,
            "tokens": result.num_tokens,
            "bank_version": result.bank_version,
        }
    )
