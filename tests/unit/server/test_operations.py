"""`/healthz`, `/readyz`, `/version`, `/metrics`, `/openapi.json`."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest

from mac_core.types import NamespaceStatus
from server.settings import Settings
from server.version import package_version
from tests.unit.server.fakes import MAX_QUESTION_TOKENS, FakeEngine, serving

pytestmark = pytest.mark.anyio


async def test_ready_names_model_versions_and_store(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"text": "Fine."})
    response = await client.get("/readyz")
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["model"], body["store"]) == ("ready", "fake", "sqlite")
    assert (body["store_state"], body["lag_versions"], body["lag_s"]) == ("open", 0, 0.0)
    assert (body["documents"], body["bank_versions"]) == (1, {"default": 1})


async def test_ready_tells_of_every_namespace(client: httpx.AsyncClient) -> None:
    for name in ("n", "n", "m"):
        await client.post("/documents", json={"text": f"Fine {name}.", "namespace": name})
    await client.post("/documents", json={"text": "More.", "namespace": "n"})
    body = (await client.get("/readyz")).json()
    assert body["bank_versions"] == {"default": 0, "m": 1, "n": 2}
    assert body["namespace_lag_versions"] == {"default": 0, "m": 0, "n": 0}


@pytest.mark.parametrize("state", ["starting", "draining", "stopped", "failed"])
async def test_not_ready_is_503_with_the_state_while_alive_is_200(
    client: httpx.AsyncClient, engine: FakeEngine, state: str
) -> None:
    engine.state = state
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["state"]) == (503, state)
    assert response.headers["content-type"] == "application/problem+json"
    assert "retry-after" in response.headers
    assert (await client.get("/healthz")).status_code == 200


async def test_a_server_whose_store_is_away_is_ready_and_says_so(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = NamespaceStatus(
        namespace="default",
        bank_version=7,
        num_documents=1,
        num_chunks=2,
        num_bytes=3,
        lag_versions=3,
    )
    away = replace(
        engine.status(),
        store="redis",
        store_state="away",
        lag_versions=3,
        lag_s=12.5,
        detail="why",
        namespaces=(behind,),
    )
    monkeypatch.setattr(engine, "status", lambda: away)
    response = await client.get("/readyz")
    body = response.json()
    assert (response.status_code, body["store"], body["store_state"]) == (200, "redis", "away")
    assert (body["lag_versions"], body["lag_s"], body["detail"]) == (3, 12.5, "why")
    assert body["namespace_lag_versions"] == {"default": 3}
    metrics = (await client.get("/metrics")).text
    assert "mac_store_up 0.0" in metrics
    assert 'mac_replica_lag_versions{namespace="default"} 3.0' in metrics
    assert "mac_replica_lag_seconds 12.5" in metrics


async def test_an_engine_without_progress_is_not_ready(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = replace(engine.status(), queued_questions=1, last_step_age_s=500.0)
    monkeypatch.setattr(engine, "status", lambda: stuck)
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["state"]) == (503, "stalled")
    assert "500 s" in response.json()["detail"]


async def test_version_names_code_and_networks() -> None:
    async with serving(FakeEngine(), Settings(commit="abc123")) as client:
        body = (await client.get("/version")).json()
    assert (body["version"], body["commit"]) == (package_version(), "abc123")
    assert body["model"]["amortization_hash"] == "a" * 64


async def test_metrics_count_requests_by_template_and_outcome(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "secret/id", "text": "Fine."})
    await client.get("/documents/secret/id")
    await client.get("/v1/documents/secret/id")
    await client.get("/documents/none")
    await client.get("/nowhere/secret")
    metrics = (await client.get("/metrics")).text
    template = 'method="GET",outcome="{}",route="{}"'
    route = "/documents/{document_id:path}"
    assert f"mac_http_requests_total{{{template.format('ok', route)}}} 2.0" in metrics
    assert f"mac_http_requests_total{{{template.format('client_error', route)}}} 1.0" in metrics
    assert 'route="unmatched"' in metrics
    assert "secret" not in metrics


async def test_metrics_read_the_engine_when_scraped(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    label = '{namespace="default"}'
    assert f"mac_bank_documents{label} 0.0" in (await client.get("/metrics")).text
    await client.post("/documents", json={"text": "Fine."})
    metrics = (await client.get("/metrics")).text
    assert f"mac_bank_documents{label} 1.0" in metrics
    assert f"mac_bank_version{label} 1.0" in metrics
    assert 'mac_engine_state{state="ready"} 1.0' in metrics


async def test_a_request_id_is_kept_or_made(client: httpx.AsyncClient) -> None:
    kept = await client.get("/healthz", headers={"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    for given in ({}, {"x-request-id": "a b"}, {"x-request-id": "x" * 129}):
        made = await client.get("/healthz", headers=given)
        assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])


@pytest.fixture
async def openapi(client: httpx.AsyncClient) -> dict[str, Any]:
    schema: dict[str, Any] = (await client.get("/openapi.json")).json()
    return schema


def walk(node: object) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value."""
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ("AskBody", "top_k", "in hybrid and text they are the bundle's `text_top_k`"),
        ("DocumentBody", "text", "the text's whitespace too, is an update"),
    ],
)
async def test_openapi_says_what_may_surprise(
    openapi: dict[str, Any], body: str, field: str, said: str
) -> None:
    assert said in openapi["components"]["schemas"][body]["properties"][field]["description"]


async def test_openapi_schemas_are_json_schema_and_every_reference_resolves(
    openapi: dict[str, Any],
) -> None:
    assert openapi["openapi"].startswith("3.1")
    schemas = openapi["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = {node["$ref"] for node in walk(openapi) if "$ref" in node}
    assert references <= {f"#/components/schemas/{name}" for name in schemas}


async def test_openapi_operations_have_distinct_ids_and_say_what_errors_are(
    openapi: dict[str, Any],
) -> None:
    operations = [item for path in openapi["paths"].values() for item in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for operation in operations:
        assert "application/problem+json" in operation["responses"]["4XX"]["content"]
    assert "HTTPValidationError" not in openapi["components"]["schemas"]


async def test_openapi_lists_the_bare_routes(openapi: dict[str, Any]) -> None:
    assert set(openapi["paths"]) == {
        "/documents",
        "/documents/{document_id}",
        "/namespaces",
        "/namespaces/{namespace}",
        "/namespaces/{namespace}/export",
        "/snapshots",
        "/snapshots/{name}",
        "/snapshots/{name}/verify",
        "/snapshots/{name}/restore",
        "/ask",
        "/jobs",
        "/jobs/{job_id}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/version",
    }


async def test_openapi_shows_every_limit() -> None:
    settings = Settings(
        max_document_chars=1234, max_body_bytes=4096, max_bulk_bytes=8192, default_timeout_ms=5000
    )
    async with serving(FakeEngine(), settings) as client:
        openapi = (await client.get("/openapi.json")).json()
    schemas = openapi["components"]["schemas"]
    document = schemas["DocumentBody"]["properties"]
    ask = schemas["AskBody"]["properties"]
    assert document["text"]["maxLength"] == 1234
    assert document["text"]["minLength"] == 1
    assert schemas["DocumentsBody"]["properties"]["documents"]["maxItems"] == 256
    assert (ask["max_new_tokens"]["minimum"], ask["max_new_tokens"]["maximum"]) == (1, 256)
    assert (ask["temperature"]["minimum"], ask["temperature"]["maximum"]) == (0, 2)
    assert {"maximum": 1024, "minimum": 0, "type": "integer"} in ask["top_k"]["anyOf"]
    assert ask["timeout_ms"]["default"] == 5000
    assert openapi["info"]["x-max-body-bytes"] == 4096
    assert openapi["info"]["x-max-bulk-bytes"] == 8192


async def test_openapi_says_what_as_of_filters_on_and_what_it_is_not(
    openapi: dict[str, Any],
) -> None:
    schemas = openapi["components"]["schemas"]
    as_of = schemas["AskBody"]["properties"]["as_of"]["description"]
    assert all(word in as_of for word in ("published_at", "without one", "replaced", "deleted"))
    assert "`as_of`" in schemas["DocumentBody"]["properties"]["published_at"]["description"]


async def test_openapi_has_the_limit_of_a_question_once_the_model_is_loaded(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.state = "starting"
    before = (await client.get("/openapi.json")).json()
    engine.state = "ready"
    after = (await client.get("/openapi.json")).json()
    told = [openapi["info"]["x-max-question-tokens"] for openapi in (before, after)]
    assert told == [None, MAX_QUESTION_TOKENS]
    question = after["components"]["schemas"]["AskBody"]["properties"]["question"]
    assert question["maxLength"] == 65_536
    assert "question_too_long" in question["description"]


@pytest.mark.parametrize(
    ("question", "limits"),
    [
        ("when " * 65, ["65 tokens", "the limit is 64"]),
        ("x" * 65_537, ["at most 65536 characters", "x-max-question-tokens"]),
    ],
)
async def test_a_question_that_is_too_long_is_told_the_limit(
    client: httpx.AsyncClient, question: str, limits: list[str]
) -> None:
    response = await client.post("/ask", json={"question": question})
    assert (response.status_code, response.json()["code"]) == (422, "question_too_long")
    assert all(limit in response.json()["detail"] for limit in limits)


async def test_a_valid_body_by_the_schema_is_a_valid_body(
    openapi: dict[str, Any], client: httpx.AsyncClient
) -> None:
    body = {"question": "When?", "as_of": "2026-01-31T12:00:00Z", "top_k": None}
    schema = {**openapi["components"]["schemas"]["AskBody"], "$defs": {}}
    jsonschema.Draft202012Validator(json.loads(json.dumps(schema))).validate(body)
    assert (await client.post("/ask", json=body)).status_code == 200
