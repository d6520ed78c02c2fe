"""`POST /documents?wait=false` and `/jobs` over a fake engine."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from mac_core.errors import NotReady, Overloaded, StoreError
from mac_core.types import JobResult
from server.problems import PROBLEMS, code_named
from tests.unit.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

TEXT = "The bridge opened in 1932."
BATCH = {"documents": [{"id": "a", "text": TEXT}, {"text": "More."}], "namespace": "news"}


async def test_a_request_that_does_not_wait_is_202_with_its_place(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await client.post("/documents", params={"wait": "false"}, json=BATCH)
    assert (response.status_code, response.headers["location"]) == (202, "/jobs/job1")
    assert response.json() == {
        "id": "job1", "state": "queued", "namespace": "news", "documents": 2, "counts": {},
        "attempts": 0, "reason": None, "created_at": "2026-09-21T14:13:20Z",
        "updated_at": "2026-09-21T14:13:20Z", "bank_version": 0, "results": [],
    }  # fmt: skip
    assert [document.id for document in engine.jobs.documents["job1"]] == ["a", None]
    assert engine.documents == {}


async def test_a_single_document_need_not_wait_either(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await client.post("/v1/documents?wait=false", json={"text": TEXT})
    assert (response.status_code, response.json()["documents"]) == (202, 1)
    assert (await client.get(response.headers["location"])).status_code == 200


async def test_waiting_is_the_default_and_may_be_said(client: httpx.AsyncClient) -> None:
    assert (await client.post("/documents?wait=true", json={"text": TEXT})).status_code == 201


@pytest.mark.parametrize("query", ["wait=perhaps", "wiat=false"])
async def test_a_strange_query_is_422(client: httpx.AsyncClient, query: str) -> None:
    response = await client.post(f"/documents?{query}", json={"text": TEXT})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


async def test_a_body_is_checked_before_it_becomes_a_job(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await client.post("/documents?wait=false", json={"text": 1})
    assert (response.status_code, engine.jobs.kept) == (422, {})


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded(lane="jobs", max_queued=2, retry_after_s=5.0), 429, "overloaded"),
        (NotReady("draining"), 503, "not_ready"),
        (StoreError("away"), 503, "store_unavailable"),
    ],
)
async def test_a_job_that_cannot_be_kept_is_refused_with_when_to_retry(
    client: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, code: str
) -> None:
    engine.jobs.refusal = error
    response = await client.post("/documents?wait=false", json={"text": TEXT})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert int(response.headers["retry-after"]) >= 1


async def test_a_job_tells_the_outcome_of_each_document(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/documents?wait=false", json=BATCH)
    learned = JobResult(id="a", status="inserted", num_chunks=1, num_tokens=5, bank_version=3)
    failed = JobResult(id="b", status="failed", error="DocumentTooLong", detail="too long")
    engine.jobs.change("job1", state="done", attempts=1, results=(learned, failed))
    body = (await client.get("/jobs/job1")).json()
    assert (body["state"], body["attempts"], body["bank_version"]) == ("done", 1, 3)
    assert body["counts"] == {"inserted": 1, "failed": 1}
    assert body["results"] == [
        {"id": "a", "status": "inserted", "chunks": 1, "tokens": 5, "bank_version": 3},
        {"id": "b", "status": "failed", "code": "document_too_long", "detail": "too long"},
    ]


def test_an_error_kept_by_name_has_its_code_of_the_table() -> None:
    assert {code_named(kind.__name__) for kind in PROBLEMS} == {c for _, c in PROBLEMS.values()}
    assert code_named("Nonsense") == "internal_error"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_job_is_404(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/jobs/none")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_a_job_is_cancelled_once(
    client: httpx.AsyncClient, engine: FakeEngine, state: str
) -> None:
    await client.post("/documents?wait=false", json=BATCH)
    engine.jobs.change("job1", state=state)
    first = await client.delete("/jobs/job1")
    assert (first.status_code, first.json()["state"]) == (200, "cancelled")
    second = await client.delete("/jobs/job1")
    assert (second.status_code, second.json()["code"]) == (409, "job_finished")
    assert "cancelled" in second.json()["detail"]


async def test_jobs_are_listed_by_state_without_results(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for _ in range(3):
        await client.post("/documents?wait=false", json=BATCH)
    engine.jobs.change("job2", state="dead", attempts=3, reason="disk full")
    dead = (await client.get("/jobs", params={"state": "dead"})).json()
    assert [(job["id"], job["reason"]) for job in dead["jobs"]] == [("job2", "disk full")]
    assert "results" not in dead["jobs"][0]
    page = (await client.get("/jobs", params={"limit": 2})).json()
    assert ([job["id"] for job in page["jobs"]], page["next_cursor"]) == (["job3", "job2"], "c")


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "state=asleep", "x=1"])
async def test_a_strange_list_is_422(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/jobs?{query}")).status_code == 422


async def test_readiness_and_metrics_show_the_backlog(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = replace(
        engine.status(), jobs={"queued": 4, "running": 1, "dead": 2}, jobs_ended={"retried": 3}
    )
    monkeypatch.setattr(engine, "status", lambda: busy)
    body = (await client.get("/readyz")).json()
    assert (body["queued_jobs"], body["running_jobs"]) == (4, 1)
    metrics = (await client.get("/metrics")).text
    assert 'mac_jobs{state="dead"} 2.0' in metrics
    assert 'mac_jobs_ended_total{outcome="retried"} 3.0' in metrics
