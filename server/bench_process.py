"""A server process that lives as long as a benchmark needs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from time import perf_counter, sleep
from typing import Any

import httpx

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


class ServerDidNotStart(Exception):
    """The server ended, or was not ready in time; the message holds the end of its log."""


@contextmanager
def own_server() -> Iterator[str]:
    """A server process on a free port with a fresh data directory; gone afterwards."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="mac-bench-") as directory:
        command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--data-dir", directory]
        log_path = Path(directory) / "server.log"
        with log_path.open("wb") as log, _process(command, log=log) as process:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log_path)
            yield url


@contextmanager
def _process(command: Sequence[str], *, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    until = perf_counter() + READY_TIMEOUT_S
    with httpx.Client(base_url=url, trust_env=False, timeout=5.0) as client:
        while perf_counter() < until and process.poll() is None:
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # the port is not bound yet
            sleep(0.2)
    tail = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise ServerDidNotStart(f"the server was not ready after {READY_TIMEOUT_S:.0f} s:\n{tail}")
