"""One process: uvicorn, the engine, and what signals do to them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from types import FrameType

import structlog
import uvicorn

from server.app import create_app
from server.deferred import DeferredEngine
from server.dependencies import EngineFacade
from server.observability import Metrics, configure_logging
from server.settings import Settings

POLL_S = 0.05  # how soon after the fact the ready line is printed
WATCH_S = 0.25  # and how soon a failure after it is seen
CLOSE_S = 5.0  # for an engine whose time to drain is over
CONNECTIONS_S = 3  # for outcomes to be sent, at least

log = structlog.stdlib.get_logger("server.serving")


def serve(settings: Settings) -> int:
    """Run until a signal; the exit code is 0 after an orderly stop, 1 when the engine fails.

    An engine that cannot be stopped has failed, too.
    """
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    metrics = Metrics()
    engine = DeferredEngine(lambda: _build(settings, metrics), model=settings.bundle)
    config = uvicorn.Config(
        create_app(engine, settings, metrics=metrics),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the app writes its own, without paths
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
    )
    server = Server(config, engine=engine, shutdown_timeout_s=settings.shutdown_timeout_s)
    server.run()
    return server.exit_code


def _build(settings: Settings, metrics: Metrics) -> EngineFacade:
    # Here, because these two lines import torch.
    from mac_core.bundles import bundle_path
    from mac_core.engine import Engine

    return Engine(
        bundle=bundle_path(settings.bundle),
        store_directory=settings.data_dir,
        store_url=settings.store_url,
        snapshot_directory=settings.snapshot_dir,
        config=settings.engine_config(),
        observer=metrics,
    )


class Server(uvicorn.Server):
    """uvicorn that says when the engine is ready and drains it while still answering.

    First signal: not ready, new work refused with 503, what runs is finished, exit 0. What is not
    finished in `shutdown_timeout_s` gets 503; a few seconds later the process has ended.
    Second signal: the process ends now; what was acknowledged is durable.
    """

    def __init__(
        self, config: uvicorn.Config, *, engine: EngineFacade, shutdown_timeout_s: float
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._engine = engine
        self._shutdown_timeout_s = shutdown_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []  # held, or the loop may drop them
        self._is_stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks.append(self._loop.create_task(self._watch()))

    async def _watch(self) -> None:
        """Print the ready line; stop the process when the engine fails, before it or after."""
        was_ready = False
        while (state := self._engine.state) not in ("failed", "stopped"):
            if state == "ready" and not was_ready:
                was_ready = True
                print(f"mac-server ready on {self._url()}", flush=True)
            await asyncio.sleep(WATCH_S if was_ready else POLL_S)
        if state == "stopped":
            return
        detail = self._engine.status().detail
        if was_ready:
            log.error("engine_failed", detail=detail)
        else:
            print(f"mac-server cannot start: {detail}", flush=True)
        self._leave()

    def _url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed to uvicorn, which would raise the signal again after an orderly stop.
        if self._is_stopping:
            os._exit(128 + sig)
        self._is_stopping = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._tasks.append(asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        ends_at = time.monotonic() + self._shutdown_timeout_s
        try:
            if not await asyncio.to_thread(self._engine.drain, timeout_s=self._shutdown_timeout_s):
                await self._close()
        finally:
            left_s = round(ends_at - time.monotonic())
            self.config.timeout_graceful_shutdown = max(CONNECTIONS_S, left_s)
            self._leave()

    async def _close(self) -> None:
        """End what runs with 503, and the process at once when the engine hangs."""
        log.warning("drain_ran_out_of_time", timeout_s=self._shutdown_timeout_s)
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.to_thread(self._engine.close)
        except TimeoutError:
            log.error("engine_did_not_stop", timeout_s=CLOSE_S)
            os._exit(1)  # what was acknowledged is durable

    def _leave(self) -> None:
        if self._engine.state == "failed":
            self.exit_code = 1
        self.should_exit = True
