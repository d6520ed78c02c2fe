"""A real server process for tests: started on a free port, stopped or killed by its own id."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

READY = re.compile(r"mac-server ready on (http://\S+)")
START_TIMEOUT_S = 240.0  # a machine busy with other work
STOP_TIMEOUT_S = 40.0


class ServerProcess:
    """`mac serve` on a data directory; `url` answers from the moment the constructor returns."""

    def __init__(
        self, data_dir: Path, *, bundle: Path, store_url: str | None = None, **settings: str
    ) -> None:
        """`settings`: more of them, such as `job_lease_s="2"`."""
        self.log: list[str] = []
        self._is_terminated = False
        self._announced: Queue[str | None] = Queue()
        command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--data-dir", str(data_dir)],
            env=environment(bundle)
            | ({"MAC_STORE_URL": store_url} if store_url else {})
            | {f"MAC_{name.upper()}": value for name, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        # Read to the end: a full pipe would stop the server.
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait_until_ready()

    def kill(self) -> None:
        """SIGKILL: no handler runs, no buffer is flushed."""
        self._process.kill()
        self._end()

    def terminate(self) -> None:
        """SIGTERM; `stop` waits for what comes of it."""
        self._is_terminated = True  # a second one would end it at once
        self._process.terminate()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that was not enough; the exit code."""
        if not self._is_terminated:
            self.terminate()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._end()

    def _wait_until_ready(self) -> str:
        try:
            url = self._announced.get(timeout=START_TIMEOUT_S)
        except Empty:
            url = None
        if url is None:
            self.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log[-40:]))
        return url

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.log.append(line)
                if announced := READY.search(line):
                    self._announced.put(announced[1])
        self._announced.put(None)

    def _end(self) -> int:
        code = self._process.wait()
        self._reader.join()
        return code


def environment(bundle: Path) -> dict[str, str]:
    """The caller's environment without its own MAC_ settings, on `bundle`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAC_")}
    return own | {"MAC_BUNDLE": str(bundle)}
