"""A server process that lives as long as a benchmark needs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import IO

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0  # above the server's own limit for finishing what runs
READY_LINE = re.compile(r"^mac-server ready on (\S+)$", re.MULTILINE)


class ServerDidNotStart(Exception):
    """The server ended, or was not ready in time; the message holds the end of its log."""


@contextmanager
def own_server() -> Iterator[str]:
    """A server process on a free port with a fresh data directory; gone afterwards.

    Raises:
        ServerDidNotStart: it ended, or was not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="mac-bench-") as directory:
        command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", "0", "--data-dir", f"{directory}/data", "--log-level", "warning"]
        log_path = Path(directory) / "server.log"
        with log_path.open("wb") as log, child_process(command, log=log) as process:
            yield ready_url(process, log_path)


@contextmanager
def child_process(command: Sequence[str], *, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to `log` and is ended, by force if need be, whatever happens."""
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


def ready_url(process: subprocess.Popen[bytes], log_path: Path) -> str:
    """Wait for the line with which the server says where it listens.

    Raises:
        ServerDidNotStart: it ended, or was not ready in time.
    """
    until = perf_counter() + READY_TIMEOUT_S
    while True:
        has_ended = process.poll() is not None
        log = log_path.read_text(encoding="utf-8", errors="replace")
        if ready := READY_LINE.search(log):
            return ready[1]
        if has_ended or perf_counter() >= until:
            why = "ended" if has_ended else f"was not ready after {READY_TIMEOUT_S:.0f} s"
            raise ServerDidNotStart(f"the server {why}; the end of its log:\n{log[-2000:]}")
        sleep(0.1)
