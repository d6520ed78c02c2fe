"""A server process of one's own: a free port, a fresh data directory, gone afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import httpx

READY = re.compile(r"mac-server ready on (http://\S+)")
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
POLL_S = 0.1


class ServerDidNotStart(Exception):
    """The server ended, or was not ready in time; the message holds the end of its log."""


@contextmanager
def running_server() -> Iterator[str]:
    """Start `mac serve` on a free port and yield its URL once it answers `/readyz`.

    Raises:
        ServerDidNotStart: with the end of the server's log.
    """
    with tempfile.TemporaryDirectory(prefix="mac-demo-") as directory:
        log = Path(directory) / "server.log"
        command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", "0", "--data-dir", str(Path(directory) / "data")]
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield wait_until_ready(process, log)
        finally:
            stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = monotonic() + START_TIMEOUT_S
    while monotonic() < deadline and process.poll() is None:
        announced = READY.search(read(log))
        if announced and is_ready(announced[1]):
            return announced[1]
        sleep(POLL_S)
    fate = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
    raise ServerDidNotStart(f"the server {fate}; the end of its log:\n{read(log)[-2000:]}")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL if that was not enough."""
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
