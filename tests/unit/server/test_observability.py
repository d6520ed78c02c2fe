"""Logs hold what an operator needs and nothing that was said."""

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from server.observability import Metrics, configure_logging, outcome_class
from tests.unit.server.fakes import FakeEngine, serving


@pytest.fixture
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    structlog.reset_defaults()


@pytest.mark.anyio
@pytest.mark.usefixtures("_root_logger")
@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_text_question_or_id_is_logged(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging(level="debug", log_format=log_format)
    engine = FakeEngine()
    engine.failure = RuntimeError("boom")
    async with serving(engine) as client:
        await client.post("/documents", json={"id": "canary-id", "text": "canary-text"})
        await client.get("/documents/canary-id", params={"namespace": "canary-name"})
        await client.post("/ask", json={"question": "canary-question"})
        await client.post("/ask", json={"question": "canary-question", "canary-field": 1})
    logged = capsys.readouterr().err
    assert "boom" in logged  # the cause of the 500 is there
    assert "canary" not in logged


@pytest.mark.anyio
@pytest.mark.usefixtures("_root_logger")
async def test_an_access_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", log_format="json")
    async with serving(FakeEngine()) as client:
        await client.get("/documents", headers={"x-request-id": "r-7"})
        await client.get("/healthz")  # probes are not logged at info
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["event"] == "request"
    assert (record["method"], record["route"], record["status"]) == ("GET", "/documents", 200)
    assert (record["request_id"], record["level"]) == ("r-7", "info")
    assert record["duration_ms"] >= 0


@pytest.mark.usefixtures("_root_logger")
def test_library_records_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", log_format="json")
    logging.getLogger("uvicorn.error").info("listening on %d", 80)
    record = json.loads(capsys.readouterr().err)
    assert (record["event"], record["logger"]) == ("listening on 80", "uvicorn.error")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, "ok"),
        (202, "ok"),
        (404, "client_error"),
        (429, "overloaded"),
        (499, "client_gone"),
        (500, "server_error"),
        (503, "unavailable"),
        (504, "timeout"),
    ],
)
def test_outcomes_are_few(status: int, expected: str) -> None:
    assert outcome_class(status) == expected


def test_the_engines_reports_become_metrics() -> None:
    metrics = Metrics()
    metrics.observe_phase("decode", 0.002)
    metrics.observe_batch("questions", 4)
    metrics.count_documents("inserted", 3)
    metrics.count_store_error("put")
    text = metrics.render().decode()
    assert 'mac_phase_seconds_bucket{le="0.001",phase="decode"} 0.0' in text
    assert 'mac_phase_seconds_bucket{le="0.0025",phase="decode"} 1.0' in text
    assert 'mac_batch_size_sum{lane="questions"} 4.0' in text
    assert 'mac_documents_total{operation="inserted"} 3.0' in text
    assert 'mac_store_errors_total{operation="put"} 1.0' in text


def test_two_servers_in_one_process_do_not_share_figures() -> None:
    first, second = Metrics(), Metrics()
    first.count_documents("inserted", 1)
    assert "inserted" not in second.render().decode()


@pytest.mark.anyio
async def test_running_requests_return_to_zero(client: httpx.AsyncClient) -> None:
    await client.get("/nowhere")
    # The scrape itself runs.
    assert "mac_http_requests_running 1.0" in (await client.get("/metrics")).text


@pytest.mark.anyio
async def test_the_bytes_of_each_tier_are_shown(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"text": "The bridge opened in 1932."})
    text = (await client.get("/metrics")).text
    assert 'mac_bank_tier_bytes{tier="device"} 32.0' in text
    assert 'mac_bank_tier_bytes{tier="ram"} 100.0' in text
    assert 'mac_bank_tier_bytes{tier="disk"} 0.0' in text
