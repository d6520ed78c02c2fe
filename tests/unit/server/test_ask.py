"""`/ask` over a fake engine: what it says, what it refuses, who is let go."""

import asyncio
import time

import httpx
import pytest

from mac_core.errors import DeadlineExceeded, EngineFailed, Overloaded
from server.app import create_app
from server.settings import Settings
from tests.unit.server.fakes import FakeEngine, serving

pytestmark = pytest.mark.anyio

QUESTION = {"question": "When opened the bridge?"}


@pytest.fixture
async def informed(client: httpx.AsyncClient) -> httpx.AsyncClient:
    body = {"id": "b", "text": "The bridge opened in 1932.", "title": "Bridges"}
    await client.post("/documents", json=body)
    return client


async def test_an_answer_names_its_sources_and_costs(informed: httpx.AsyncClient) -> None:
    response = await informed.post("/ask", json=QUESTION)
    assert response.status_code == 200
    assert response.json() == {
        "answer": "The bridge opened in 1932.",
        "confidence": 0.5,
        "sources": [
            {
                "id": "b",
                "chunk": 0,
                "score": 1.0,
                "title": "Bridges",
                "snippet": "The bridge opened in 1932.",
                "span": {"start": 0, "end": 26},
            }
        ],
        "num_documents_used": 1,
        "note": None,
        "mode": "hybrid",
        "bank_version": 1,
        "usage": {"prompt_tokens": 4, "prefix_tokens": 8, "completion_tokens": 2},
        "timings_ms": {
            "queue": 0.1,
            "select": 0.2,
            "aggregate": 0.3,
            "prefill": 0.4,
            "decode": 0.5,
        },
        "model": "fake",
    }


@pytest.mark.parametrize("mode", ["none", "memory", "text", "hybrid"])
async def test_the_mode_reaches_the_engine(
    informed: httpx.AsyncClient, engine: FakeEngine, mode: str
) -> None:
    response = await informed.post("/ask", json={**QUESTION, "mode": mode})
    assert response.json()["mode"] == mode
    assert engine.questions[-1].mode == mode


async def test_mode_none_says_that_no_document_was_used(informed: httpx.AsyncClient) -> None:
    body = (await informed.post("/ask", json={**QUESTION, "mode": "none"})).json()
    assert (body["num_documents_used"], body["sources"]) == (0, [])
    assert "no document was used" in body["note"]


async def test_every_field_reaches_the_engine(
    informed: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {
        **QUESTION,
        "namespace": "news",
        "top_k": 0,
        "filter": {"city": "Sydney"},
        "as_of": "2026-01-31T12:00:00Z",
        "max_new_tokens": 8,
        "temperature": 0.7,
        "seed": 3,
        "min_version": 0,
        "timeout_ms": 250,
    }
    assert (await informed.post("/ask", json=body)).status_code == 200
    asked = engine.questions[-1]
    assert (asked.namespace, asked.top_k, asked.filter) == ("news", 0, {"city": "Sydney"})
    assert (asked.as_of, asked.max_new_tokens, asked.temperature) == (1_769_860_800.0, 8, 0.7)
    assert (asked.seed, asked.min_version, asked.timeout_ms) == (3, 0, 250.0)


async def test_below_the_confidence_asked_for_the_answer_is_null_and_its_sources_stay(
    informed: httpx.AsyncClient,
) -> None:
    response = await informed.post("/ask", json={**QUESTION, "min_confidence": 0.6})
    body = response.json()
    assert (response.status_code, body["answer"], body["confidence"]) == (200, None, 0.5)
    assert [(source["id"], source["span"]) for source in body["sources"]] == [("b", None)]
    assert body["note"].startswith("no answer: nothing in the bank answers this")
    assert body["num_documents_used"] == 1


async def test_the_bare_model_can_abstain_too(client: httpx.AsyncClient) -> None:
    asked = {**QUESTION, "mode": "none", "min_confidence": 1.0}
    body = (await client.post("/ask", json=asked)).json()
    assert body["answer"] is None
    assert body["note"].startswith("no answer: no document was used")


@pytest.mark.parametrize("least", [None, 0, 0.0, 0.5])
async def test_at_the_confidence_asked_for_or_above_it_the_answer_is_given(
    informed: httpx.AsyncClient, least: float | None
) -> None:
    body = (await informed.post("/ask", json={**QUESTION, "min_confidence": least})).json()
    assert (body["answer"], body["note"]) == ("The bridge opened in 1932.", None)


@pytest.mark.parametrize("least", [-0.01, 1.01, "0.5", True, [0.5]])
async def test_a_min_confidence_that_is_no_probability_is_422(
    client: httpx.AsyncClient, engine: FakeEngine, least: object
) -> None:
    response = await client.post("/ask", json={**QUESTION, "min_confidence": least})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    assert engine.questions == []


@pytest.mark.parametrize(("given", "least"), [({}, 0.7), ({"min_confidence": 0.0}, 0.0)])
async def test_the_setting_is_the_min_confidence_of_requests_that_give_none(
    engine: FakeEngine, given: dict[str, float], least: float
) -> None:
    async with serving(engine, Settings(min_confidence=0.7)) as client:
        await client.post("/ask", json={**QUESTION, **given})
        schema = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert engine.questions[-1].min_confidence == least
    assert schema["AskBody"]["properties"]["min_confidence"]["default"] == 0.7
    answer = schema["AskResponse"]["properties"]["answer"]
    assert {kind["type"] for kind in answer["anyOf"]} == {"string", "null"}


async def test_a_bank_that_is_behind_is_409(informed: httpx.AsyncClient) -> None:
    response = await informed.post("/ask", json={**QUESTION, "min_version": 7})
    assert (response.status_code, response.json()["code"]) == (409, "bank_behind")
    assert "version 1, asked for 7" in response.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DeadlineExceeded(timeout_ms=250, where="in the queue"), 504, "deadline_exceeded"),
        (EngineFailed("secret internals"), 500, "engine_failed"),
        (ZeroDivisionError("secret internals"), 500, "internal_error"),
    ],
)
async def test_what_the_engine_sets_later_is_its_row_of_the_table(
    informed: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, code: str
) -> None:
    engine.failure = error
    response = await informed.post("/ask", json=QUESTION, headers={"x-request-id": "r-1"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["request_id"] == response.headers["x-request-id"] == "r-1"
    assert "secret" not in response.text


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
async def test_an_engine_that_is_not_ready_is_503_and_says_when_to_retry(
    client: httpx.AsyncClient, engine: FakeEngine, state: str
) -> None:
    engine.state = state
    response = await client.post("/ask", json=QUESTION)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_full_queue_is_429(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.refusal = Overloaded(lane="questions", max_queued=4, retry_after_s=0.2)
    response = await client.post("/ask", json=QUESTION)
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    assert response.headers["retry-after"] == "1"


async def test_a_slow_engine_does_not_hold_up_liveness(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    asks = [asyncio.create_task(client.post("/ask", json=QUESTION)) for _ in range(8)]
    await asyncio.to_thread(engine.asked.wait, 5)
    started = time.perf_counter()
    alive = await client.get("/healthz")
    elapsed_s = time.perf_counter() - started
    assert not any(task.done() for task in asks)
    engine.gate.set()
    answers = await asyncio.gather(*asks)
    assert alive.status_code == 200
    assert elapsed_s < 1.0
    assert {answer.status_code for answer in answers} == {200}


async def test_a_future_that_the_engine_cancels_is_503(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    submit = engine.ask

    def cancelled(question):  # type: ignore[no-untyped-def]
        future = submit(question)
        future.cancel()
        return future

    monkeypatch.setattr(engine, "ask", cancelled)
    response = await client.post("/ask", json=QUESTION)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


async def test_a_client_that_goes_away_cancels_its_question(engine: FakeEngine) -> None:
    engine.gate.clear()
    app = create_app(engine, Settings())
    body = b'{"question": "When opened the bridge?"}'
    gone = asyncio.Event()
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent = []

    async def receive():  # type: ignore[no-untyped-def]
        part = next(parts, None)
        if part is None:
            await gone.wait()
        return part or {"type": "http.disconnect"}

    async def send(message):  # type: ignore[no-untyped-def]
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/ask",
        "raw_path": b"/ask",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
    }
    request = asyncio.create_task(app(scope, receive, send))
    await asyncio.to_thread(engine.asked.wait, 5)
    gone.set()
    await asyncio.wait_for(request, 5)
    assert engine.cancelled.is_set()
    assert sent == []
    assert 'outcome="client_gone"' in app.state.metrics.render().decode()
    engine.close()
