"""NDJSON and `mac ingest` against a real server: answered while sent, resumed, left."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from rich.console import Console

from server.importing import run_import
from tests.integration.server_process import ServerProcess
from tests.integration.test_kill import make_client, make_document
from tests.integration.test_replicas import wait_until
from tests.redis_process import RedisProcess

HEADERS = {"content-type": "application/x-ndjson"}


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with make_client(server) as client:
        yield client


class Socket:
    """A client that writes and reads when it is told to."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port), timeout=60)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(
            b"POST /documents HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-ndjson\r\n\r\n"
        )

    def send(self, line: bytes) -> None:
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(line), line))

    def read_head(self) -> bytes:
        status = self._lines.readline()
        while self._lines.readline().strip():
            pass
        return status

    def read_outcome(self) -> dict[str, object]:
        """One chunk, which holds one line."""
        size = int(self._lines.readline(), 16)
        outcome: dict[str, object] = json.loads(self._lines.read(size))
        self._lines.readline()
        return outcome

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def test_an_outcome_arrives_before_the_next_line_is_sent(server: str) -> None:
    with closing(Socket(server)) as stream:
        stream.send(b'{"id": "first", "text": "The first line of a stream."}\n')
        assert stream.read_head() == b"HTTP/1.1 200 OK\r\n"
        first = stream.read_outcome()
        assert (first["line"], first["id"], first["status"]) == (1, "first", "inserted")
        stream.send(b"not json\n")
        assert stream.read_outcome()["code"] == "malformed_json"


def test_a_client_that_leaves_is_counted_and_the_server_goes_on(
    server: str, client: httpx.Client
) -> None:
    with closing(Socket(server)) as stream:
        stream.send(b'{"id": "leaving", "text": "Said before leaving."}\n')
        stream.read_head()
        stream.read_outcome()
    counted = 'mac_http_requests_total{method="POST",outcome="client_gone",route="/documents"}'
    wait_until(lambda: counted in client.get("/metrics").text)
    wait_until(lambda: "mac_http_requests_running 1.0" in client.get("/metrics").text)


def test_many_lines_are_answered_in_order_and_again_unchanged(client: httpx.Client) -> None:
    lines = [json.dumps(make_document(index, 7) | {"id": f"bulk/{index}"}) for index in range(150)]
    lines[70] = "{"
    body = "\n".join(lines)
    answers = [
        [json.loads(line) for line in response.text.splitlines()]
        for response in [client.post("/documents", content=body, headers=HEADERS) for _ in range(2)]
    ]
    assert [[a["line"] for a in run] for run in answers] == [list(range(1, 151))] * 2
    for run, status in zip(answers, ("inserted", "unchanged"), strict=True):
        failed = run.pop(70)
        assert (failed["status"], failed["code"]) == ("failed", "malformed_json")
        assert [a["id"] for a in run] == [f"bulk/{i}" for i in range(150) if i != 70]
        assert {a["status"] for a in run} == {status}


def test_an_import_is_known_at_the_next_question_and_repeated_without_change(
    tmp_path: Path, server: str, client: httpx.Client
) -> None:
    (tmp_path / "page.html").write_text("<h1>Vaults</h1><p>The vault of Ghent holds maps.", "utf-8")
    (tmp_path / "rows.csv").write_text("city,code\nOslo,47\nRome,39\n", "utf-8")
    (tmp_path / "broken.jsonl").write_text('{"text": "A fine line."}\n{\n', "utf-8")
    runs = [
        run_import([str(tmp_path)], url=server, namespace="import", console=Console(quiet=True))
        for _ in range(2)
    ]
    assert [run.counts for run in runs] == [
        {"inserted": 4},
        {"unchanged": 4},
    ]
    assert [run.num_unread for run in runs] == [1, 1]
    question = {"question": "What does the vault of Ghent hold?", "namespace": "import"}
    answer = client.post("/ask", json=question).raise_for_status().json()
    assert answer["sources"][0]["id"] == (tmp_path / "page.html").as_posix()


def test_a_stream_says_where_to_go_on_when_its_store_dies_and_when_its_server_stops(
    tmp_path: Path, bundle: Path
) -> None:
    redis = RedisProcess(tmp_path / "redis")
    server = ServerProcess(tmp_path / "data", bundle=bundle, store_url=redis.url)
    try:
        with closing(Socket(server.url)) as stream:
            stream.send(b'{"id": "a", "text": "Durable before the store died."}\n')
            stream.read_head()
            assert stream.read_outcome()["status"] == "inserted"
            redis.kill()
            stream.send(b'{"id": "b", "text": "Sent after the store died."}\n')
            failed, stopped = stream.read_outcome(), stream.read_outcome()
        redis.start()
        with closing(Socket(server.url)) as stream, make_client(server.url) as client:
            wait_until(lambda: client.get("/readyz").json()["store_state"] == "open")
            stream.send(b'{"id": "b", "text": "Sent after the store died."}\n')
            stream.read_head()
            again = stream.read_outcome()
            server.terminate()
            drained = stream.read_outcome()
    finally:
        code = server.stop()
        redis.kill()
    assert (failed["line"], failed["code"]) == (2, "store_unavailable")
    assert failed["retry_after_s"] == stopped["retry_after_s"] == 2
    assert (stopped["line"], stopped["status"]) == (2, "stopped")
    assert again["status"] == "inserted"
    assert (drained["line"], drained["status"], drained["code"]) == (2, "stopped", "not_ready")
    assert code == 0
