"""The process around the app: what ends it, with which exit code, and what becomes of requests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from threading import Event

import httpx
import pytest
import structlog
import uvicorn

from mac_core.errors import NotReady
from mac_core.types import Answer, Question
from server import serving
from server.app import create_app
from server.settings import Settings
from tests.unit.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

WAIT_S = 10.0
QUESTION = {"question": "When opened the bridge?"}


class Server(serving.Server):
    """Tells a test when the ready line is printed."""

    def __init__(self, engine: FakeEngine) -> None:
        app = create_app(engine, Settings(shutdown_timeout_s=0.1))
        config = uvicorn.Config(
            app, port=0, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=1
        )
        super().__init__(config, engine=engine, shutdown_timeout_s=0.1)
        self.is_ready = asyncio.Event()

    def _url(self) -> str:
        self.is_ready.set()
        return super()._url()


class Slow(FakeEngine):
    """Finishes no question in time; closing it ends them, as it does in the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._future: Future[Answer] = Future()

    def ask(self, question: Question) -> Future[Answer]:
        self.asked.set()
        return self._future

    def drain(self, *, timeout_s: float) -> bool:
        self.calls.append("drain")
        return self.was_closed

    def close(self) -> None:
        self.calls.append("close")
        if not self._future.done():
            self._future.set_exception(NotReady("the engine was stopped"))
        super().close()


class Hanging(FakeEngine):
    """Neither drains nor closes before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Event()

    def drain(self, *, timeout_s: float) -> bool:
        return self.go.is_set()

    def close(self) -> None:
        assert self.go.wait(WAIT_S)
        super().close()


@asynccontextmanager
async def running(engine: FakeEngine) -> AsyncIterator[Server]:
    """A server that has printed its ready line, and whose end is awaited."""
    server = Server(engine)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(WAIT_S):
            await server.is_ready.wait()
            yield server
            await asyncio.shield(task)
    finally:
        server.should_exit = True
        await task


async def test_an_engine_that_fails_once_ready_ends_the_process_with_1(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    with structlog.testing.capture_logs() as logged:
        async with running(engine) as server:
            engine.state = "failed"
    assert server.exit_code == 1
    assert "engine_failed" in [entry["event"] for entry in logged]
    assert "cannot start" not in capsys.readouterr().out


async def test_an_engine_that_fails_while_it_drains_is_no_orderly_stop(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drain(*, timeout_s: float) -> bool:
        engine.state = "failed"
        return True

    monkeypatch.setattr(engine, "drain", drain)
    monkeypatch.setattr(serving, "WATCH_S", WAIT_S)
    async with running(engine) as server:
        server.handle_exit(signal.SIGTERM, None)
    assert server.exit_code == 1


async def test_a_question_that_outlasts_the_drain_gets_503_and_holds_nothing_up() -> None:
    engine = Slow()
    async with running(engine) as server, httpx.AsyncClient(trust_env=False) as client:
        asking = asyncio.create_task(client.post(f"{server._url()}/ask", json=QUESTION))
        assert await asyncio.to_thread(engine.asked.wait, WAIT_S)
        server.handle_exit(signal.SIGTERM, None)
        response = await asking
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert server.exit_code == 0
    assert engine.calls == ["drain", "close", "drain", "close"]  # the last two by the lifespan
    assert server.config.timeout_graceful_shutdown == serving.CONNECTIONS_S


async def test_an_engine_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, codes = Hanging(), list[int]()

    def leave(code: int) -> None:
        codes.append(code)
        engine.go.set()

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(serving, "CLOSE_S", 0.01)
    async with running(engine) as server:
        server.handle_exit(signal.SIGTERM, None)
    assert codes == [1]
