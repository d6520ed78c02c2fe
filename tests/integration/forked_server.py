"""Servers that start in a moment: each a process of its own, forked from one that has imported all.

For tests that kill a server a hundred times. What is forked has loaded code and nothing else: no
engine, no store, no thread.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import httpx

from tests.redis_process import free_port

START_TIMEOUT_S = 240.0  # a machine busy with other work
PRELOADED = ["server.serving", "mac_core.engine", "tests.builders", "transformers.models.bert"]


class ForkedServer:
    """A server on a data directory; `url` answers when the constructor returns."""

    def __init__(self, data_dir: Path, *, bundle: Path, store_url: str | None, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)  # the first call decides
        port = free_port()
        flags = {
            "host": "127.0.0.1", "port": port, "data_dir": str(data_dir), "bundle": str(bundle),
            "store_url": store_url, "num_threads": 1,
        }  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._process = context.Process(target=_serve, args=(flags, log))
        self._process.start()
        self._wait_until_ready()

    def kill(self) -> None:
        """SIGKILL: no handler runs, no buffer is flushed."""
        self._process.kill()
        self._process.join()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(base_url=self.url, trust_env=False, timeout=30.0) as client:
            while not _is_ready(client):
                if time.monotonic() > deadline or not self._process.is_alive():
                    self.kill()
                    raise RuntimeError(f"the server did not start:\n{self._log.read_text()}")
                time.sleep(0.02)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _serve(flags: dict[str, Any], log: Path) -> None:
    """In the forked process."""
    from server.serving import serve
    from server.settings import load_settings

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    serve(load_settings(flags))
