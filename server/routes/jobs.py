"""`/jobs`: what became of documents that were sent with `?wait=false`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from server.dependencies import EngineDependency, outcome
from server.job_schemas import JobBody, JobList, JobListQuery, JobSummary
from server.schemas import NoQuery

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


@router.get("/jobs")
async def get_jobs(query: Annotated[JobListQuery, Query()], engine: EngineDependency) -> JobList:
    """List jobs, the newest first; `state` keeps those in one state, as `dead`."""
    page = await outcome(
        engine.jobs.list(limit=query.limit, cursor=query.cursor, state=query.state)
    )
    return JobList(jobs=[JobSummary.of(job) for job in page.jobs], next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}")
async def get_job(
    job_id: JobId, _query: Annotated[NoQuery, Query()], engine: EngineDependency
) -> JobBody:
    """Read one job with the outcome of each document so far."""
    return JobBody.of(await outcome(engine.jobs.get(job_id)))


@router.delete("/jobs/{job_id}")
async def delete_job(
    job_id: JobId, _query: Annotated[NoQuery, Query()], engine: EngineDependency
) -> JobBody:
    """Cancel a job: what has not begun is not learned; what was learned stays.

    409 `job_finished` when there is nothing left to cancel.
    """
    return JobBody.of(await outcome(engine.jobs.cancel(job_id)))
