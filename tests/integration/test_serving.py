"""A real process on a real socket, with a fake engine: ready line, signals, broken connections."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
READY = re.compile(r"^mac-server ready on http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
TIMEOUT_S = 30.0
QUESTION = {"question": "When opened the bridge?"}

# Puts the fake where `serve` would build the engine. `hold`: asks wait for a file to appear.
CHILD = """
import sys, threading, time
from pathlib import Path
import server.serving as serving
from server.settings import load_settings
from tests.unit.server.fakes import FakeEngine

kind, folder = sys.argv[1], Path(sys.argv[2])

class Watched(FakeEngine):
    def ask(self, question):
        future = super().ask(question)
        future.add_done_callback(lambda f: f.cancelled() and (folder / "cancelled").touch())
        (folder / "asked").touch()
        return future
    def drain(self, *, timeout_s):
        self.state = "draining"
        (folder / "draining").touch()
        return self.gate.wait(timeout_s)
    def close(self):
        super().close()
        (folder / "closed").touch()

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

def build(settings, metrics):
    if kind == "broken":
        raise FileNotFoundError("no bundle 'mini'")
    if kind == "slow":
        wait_for(folder / "go")
    engine = Watched()
    if kind == "hold":
        engine.gate.clear()
        threading.Thread(
            target=lambda: (wait_for(folder / "go"), engine.gate.set()), daemon=True
        ).start()
    return engine

serving._build = build
sys.exit(serving.serve(load_settings({"port": 0})))
"""


class Process:
    """One server process; its stdout is read as it comes."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "stdout"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAC_")}
        with self.output.open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, kind, str(folder)],
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env=environment,
            )

    def url(self) -> str:
        """The address of the ready line."""
        wait_until(lambda: READY.search(self.output.read_text()) is not None)
        found = READY.search(self.output.read_text())
        assert found
        return f"http://127.0.0.1:{found[1]}"

    def bound_url(self) -> str:
        """The address before the engine is ready, from uvicorn's own log line."""
        bound = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
        wait_until(lambda: bound.search((self.folder / "stderr").read_text()) is not None)
        found = bound.search((self.folder / "stderr").read_text())
        assert found
        return found[1]

    def seen(self, name: str) -> bool:
        return (self.folder / name).exists()

    def go(self) -> None:
        (self.folder / "go").touch()

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def start(kind: str) -> Process:
        started.append(Process(kind, tmp_path))
        return started[-1]

    yield start
    for item in started:
        item.process.kill()
        item.process.wait()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


def test_the_ready_line_names_the_real_port(
    start: Callable[[str], Process], client: httpx.Client
) -> None:
    server = start("plain")
    assert client.get(f"{server.url()}/readyz").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.seen("closed")


def test_liveness_answers_while_the_engine_is_built(
    start: Callable[[str], Process], client: httpx.Client
) -> None:
    server = start("slow")
    url = server.bound_url()
    assert client.get(f"{url}/healthz").status_code == 200
    ready = client.get(f"{url}/readyz")
    assert (ready.status_code, ready.json()["state"]) == (503, "starting")
    assert client.post(f"{url}/ask", json=QUESTION).json()["code"] == "not_ready"
    assert server.output.read_text() == ""
    server.go()
    assert server.url() == url


def test_an_engine_that_cannot_be_built_ends_the_process_with_1(
    start: Callable[[str], Process],
) -> None:
    server = start("broken")
    assert server.wait() == 1
    assert "cannot start: FileNotFoundError: no bundle 'mini'" in server.output.read_text()


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(
    start: Callable[[str], Process], client: httpx.Client
) -> None:
    server = start("hold")
    url = server.url()
    answers: list[httpx.Response] = []
    running = threading.Thread(target=lambda: answers.append(ask_on_its_own_connection(url)))
    running.start()
    wait_until(lambda: server.seen("asked"))
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.seen("draining"))
    refused = client.post(f"{url}/ask", json=QUESTION)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert client.get(f"{url}/readyz").json()["state"] == "draining"
    assert client.get(f"{url}/healthz").status_code == 200
    server.go()
    running.join(TIMEOUT_S)
    assert [answer.status_code for answer in answers] == [200]
    assert server.wait() == 0
    assert server.seen("closed")


def ask_on_its_own_connection(url: str) -> httpx.Response:
    return httpx.post(f"{url}/ask", json=QUESTION, timeout=TIMEOUT_S, trust_env=False)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_now(start: Callable[[str], Process], second: signal.Signals) -> None:
    server = start("hold")
    url = server.url()
    with connection_to(url) as connection:
        send_question(connection)
        wait_until(lambda: server.seen("asked"))
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.seen("draining"))
        server.process.send_signal(second)
        assert server.wait() == 128 + second


def connection_to(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), TIMEOUT_S)


def send_question(connection: socket.socket) -> None:
    body = json.dumps(QUESTION).encode()
    head = (
        "POST /ask HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def test_a_client_that_is_killed_frees_its_question(
    start: Callable[[str], Process], client: httpx.Client
) -> None:
    server = start("hold")
    url = server.url()
    with connection_to(url) as connection:
        send_question(connection)
        wait_until(lambda: server.seen("asked"))
    wait_until(lambda: server.seen("cancelled"))
    wait_until(lambda: 'outcome="client_gone"' in client.get(f"{url}/metrics").text)


@pytest.mark.parametrize("num_bytes", [10 * 1024**2, 40 * 1024**2])
def test_a_body_too_large_is_answered_not_reset(
    start: Callable[[str], Process], client: httpx.Client, num_bytes: int
) -> None:
    url = start("plain").url()
    response = client.post(f"{url}/documents", json={"text": "x" * num_bytes})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    chunks = (b"x" * 65536 for _ in range(num_bytes // 65536))
    headers = {"content-type": "application/json"}
    response = client.post(f"{url}/documents", content=chunks, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_one_who_asks_first_is_refused_before_sending(start: Callable[[str], Process]) -> None:
    url = start("plain").url()
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), TIMEOUT_S)
    connection.putrequest("POST", "/documents")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10 * 1024**2))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_ids_survive_a_real_socket(start: Callable[[str], Process], client: httpx.Client) -> None:
    url = start("plain").url()
    body = {"id": "straße/日本/50%", "text": "Fine."}
    assert client.post(f"{url}/documents", json=body).status_code == 201
    path = "stra%C3%9Fe%2F%E6%97%A5%E6%9C%AC%2F50%25"
    assert client.get(f"{url}/documents/{path}").json()["id"] == body["id"]
    assert client.delete(f"{url}/documents/{path}").status_code == 200


def test_a_taken_port_ends_the_process(start: Callable[[str], Process], tmp_path: Path) -> None:
    url = start("plain").url()
    command = [sys.executable, "-m", "server.cli", "serve", "--port", url.rpartition(":")[2]]
    command += ["--data-dir", str(tmp_path), "--log-format", "console"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert "address already in use" in done.stderr.lower()
