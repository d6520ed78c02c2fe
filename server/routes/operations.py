"""`/healthz`, `/readyz`, `/metrics`, `/version`: what orchestrators and operators ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mac_core.types import EngineStatus
from server.dependencies import EngineDependency, SettingsDependency
from server.problems import RETRY_NOT_READY_S, problem
from server.responses import Liveness, Readiness, Version
from server.version import package_version, source_commit

STALLED_AFTER_S = 120.0  # with work waiting; a step is seconds even on a slow CPU

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def get_healthz() -> Liveness:
    """The process lives and its event loop turns, whatever the engine does."""
    return Liveness()


@router.get("/readyz", response_model=Readiness)
async def get_readyz(request: Request, engine: EngineDependency) -> Readiness | Response:
    """Whether questions are answered now; 503 says why not.

    A server whose store is away is ready: it answers from its bank, and `store_state` says so.
    """
    status = engine.status()
    state: str = status.state
    detail = status.detail
    if _is_stalled(status):
        state, detail = "stalled", f"work waits, no step for {status.last_step_age_s:.0f} s"
    readiness = _readiness(status, state=state, detail=detail)
    if state == "ready":
        return readiness
    return problem(
        request,
        status=503,
        code="not_ready",
        headers={"Retry-After": str(RETRY_NOT_READY_S)},
        detail=detail or state,
        state=state,
        **readiness.model_dump(mode="json", exclude={"status", "detail"}),
    )


@router.get("/metrics", response_class=Response)
def get_metrics(request: Request) -> Response:
    """Prometheus text format; a plain function, because rendering is not awaited."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def get_version(engine: EngineDependency, settings: SettingsDependency) -> Version:
    """Code and networks, with their hashes once they are loaded."""
    return Version(
        version=package_version(),
        commit=settings.commit or source_commit(),
        model=dict(engine.model_info()),
    )


def _is_stalled(status: EngineStatus) -> bool:
    waiting = status.queued_questions + status.queued_documents
    age_s = status.last_step_age_s
    return status.state == "ready" and waiting > 0 and (age_s or 0.0) > STALLED_AFTER_S


def _readiness(status: EngineStatus, *, state: str, detail: str) -> Readiness:
    return Readiness(
        status=state,
        detail=detail,
        model=status.model,
        documents=status.num_documents,
        chunks=status.num_chunks,
        bank_versions={one.namespace: one.bank_version for one in status.namespaces},
        store=status.store,
        store_state=status.store_state,
        lag_versions=status.lag_versions,
        namespace_lag_versions={one.namespace: one.lag_versions for one in status.namespaces},
        lag_s=status.lag_s,
        corrupt_records=status.num_corrupt,
        queued_questions=status.queued_questions,
        queued_documents=status.queued_documents,
        queued_jobs=status.jobs.get("queued", 0),
        running_jobs=status.jobs.get("running", 0),
        last_step_age_s=status.last_step_age_s,
    )
