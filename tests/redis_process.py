"""A real Redis for tests: its own process, free port and directory; killed by its own id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

START_TIMEOUT_S = 60.0  # a machine busy with other work
STOP_TIMEOUT_S = 20.0


class RedisProcess:
    """`redis-server` with an append-only file; answers when the constructor returns."""

    def __init__(self, directory: Path, *, appendfsync: str = "always", **options: str) -> None:
        """`options`: more of redis.conf, such as `maxmemory_policy="allkeys-lru"`."""
        found = shutil.which("redis-server")
        if found is None:
            raise RuntimeError(
                "redis-server is not installed, and these tests need a real one: "
                "apt-get install redis-server"
            )
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        given = {
            "port": str(self.port), "bind": "127.0.0.1", "dir": str(directory), "save": "",
            "appendonly": "yes", "appendfsync": appendfsync, "maxmemory-policy": "noeviction",
        } | {name.replace("_", "-"): value for name, value in options.items()}  # fmt: skip
        self._password = options.get("requirepass")
        self._command = [found]
        for name, value in given.items():
            self._command += [f"--{name}", value]
        self._log = directory / "redis.log"
        self.start()

    def start(self) -> None:
        """Start on the same port and directory, and wait until everything is loaded."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        with self.client() as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"redis-server did not start:\n{self._log.read_text()}")
                time.sleep(0.02)

    def client(self) -> Redis:
        return Redis(port=self.port, password=self._password, socket_timeout=20)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed that was not."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
