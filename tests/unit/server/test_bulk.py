"""`POST /documents` as NDJSON: order, isolation, limits, backpressure, and a client that leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from mac_core.errors import CorruptRecord, EngineFailed, NotReady, Overloaded, StoreError
from mac_core.types import Document, DocumentResult
from server.bulk import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, BulkAdd
from server.dependencies import ClientGone
from server.settings import Settings
from tests.unit.server.fakes import FakeEngine, serving

pytestmark = pytest.mark.anyio

HEADERS = {"content-type": "application/x-ndjson"}


async def post(
    client: httpx.AsyncClient, body: bytes | AsyncIterator[bytes], path: str = "/documents"
) -> list[dict[str, Any]]:
    response = await client.post(path, content=body, headers=HEADERS)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def lines(amount: int) -> bytes:
    return b"".join(b'{"id": "d%d", "text": "Entry %d."}\n' % (i, i) for i in range(amount))


@pytest.mark.parametrize("path", ["/documents", "/v1/documents"])
async def test_each_line_gets_its_outcome(client: httpx.AsyncClient, path: str) -> None:
    first, second = await post(client, b'{"id": "a", "text": "One."}\n{"text": "Two."}', path)
    assert first == {
        "line": 1, "id": "a", "status": "inserted", "chunks": 1, "tokens": 1, "bank_version": 1,
    }  # fmt: skip
    assert (second["line"], second["status"], second["bank_version"]) == (2, "inserted", 2)


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_outcomes_come_in_order_however_the_body_is_cut(
    client: httpx.AsyncClient, size: int
) -> None:
    answers = await post(client, pieces(lines(200), size))
    assert [(a["line"], a["id"], a["status"]) for a in answers] == [
        (i + 1, f"d{i}", "inserted") for i in range(200)
    ]


async def test_a_bad_line_fails_alone_with_its_number(client: httpx.AsyncClient) -> None:
    body = (
        b'{"id": "a", "text": "One."}\r\n\n{"text": \n[1]\n{"id": "b", "txt": "x"}\n'
        b'{"id": "c", "text": " "}\n\xff\xfe\n{"text": "\\ud800"}\n{"id": "z", "text": "Two."}\n'
    )
    answers = await post(client, body)
    assert [(a["line"], a["id"], a["status"], a.get("code")) for a in answers] == [
        (1, "a", "inserted", None),
        (3, None, "failed", "malformed_json"),
        (4, None, "failed", "invalid_input"),
        (5, None, "failed", "invalid_input"),
        (6, "c", "failed", "invalid_input"),
        (7, None, "failed", "not_utf8"),
        (8, None, "failed", "malformed_json"),
        (9, "z", "inserted", None),
    ]
    assert "text: Field required" in answers[3]["detail"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"id": "x", "text": "caf\xe9"}', "invalid continuation byte at byte 25"),
        ('{"id": "x", "text": "caf"}'.encode("utf-16-le"), "NUL bytes"),
    ],
)
async def test_a_line_in_another_encoding_fails_alone(
    client: httpx.AsyncClient, engine: FakeEngine, bad: bytes, why: str
) -> None:
    body = b'{"id": "a", "text": "One."}\n' + bad + b'\n{"id": "z", "text": "Two."}\n'
    answers = await post(client, body)
    assert [(a["line"], a["status"], a.get("code")) for a in answers] == [
        (1, "inserted", None),
        (2, "failed", "not_utf8"),
        (3, "inserted", None),
    ]
    assert why in answers[1]["detail"]
    assert list(engine.documents["default"]) == ["a", "z"]


@pytest.mark.parametrize("size", [1, 4096])
async def test_a_byte_order_mark_is_no_part_of_a_line(
    client: httpx.AsyncClient, engine: FakeEngine, size: int
) -> None:
    first, second = b'{"id": "a", "text": "One."}\n', b'{"id": "b", "text": "Two."}\n'
    bom = b"\xef\xbb\xbf"
    answers = await post(client, pieces(bom + first + bom + second + bom + b"\n" + bom, size))
    assert [(a["line"], a["status"]) for a in answers] == [(1, "inserted"), (2, "inserted")]
    assert engine.documents["default"]["a"].text == "One."


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_line_that_is_too_long_is_dropped_and_the_next_is_read(size: int) -> None:
    long = json.dumps({"id": "long", "text": "x" * 5000}).encode()
    body = b'{"id": "a", "text": "One."}\n' + long + b'\n{"id": "z", "text": "Two."}\n' + long
    async with serving(FakeEngine(), Settings(max_body_bytes=1024)) as client:
        answers = await post(client, pieces(body, size))
    assert [(a["line"], a["status"], a.get("code")) for a in answers] == [
        (1, "inserted", None),
        (2, "failed", "line_too_large"),
        (3, "inserted", None),
        (4, "failed", "line_too_large"),
    ]
    assert "1024 bytes" in answers[1]["detail"]


async def test_a_body_may_be_larger_than_the_limit_of_other_bodies() -> None:
    async with serving(FakeEngine(), Settings(max_body_bytes=1024)) as client:
        assert len(await post(client, lines(100))) == 100


async def test_a_body_beyond_its_own_limit_ends_with_a_line_that_says_so() -> None:
    async with serving(FakeEngine(), Settings(max_bulk_bytes=1024)) as client:
        *answers, last = await post(client, pieces(lines(100), 100))
    assert (last["line"], last["code"]) == (len(answers) + 1, "body_too_large")
    assert {answer["status"] for answer in answers} == {"inserted"}
    assert 20 < len(answers) < 40


async def test_another_route_keeps_its_limit_whatever_the_media_type() -> None:
    async with serving(FakeEngine(), Settings(max_body_bytes=1024)) as client:
        response = await client.post("/ask", content=b"x" * 2000, headers=HEADERS)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


async def test_lines_go_to_their_namespace(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = b'{"id": "a", "text": "x"}\n{"id": "b", "text": "x", "namespace": "n"}\n'
    await post(client, body)
    assert (list(engine.documents["default"]), list(engine.documents["n"])) == (["a"], ["b"])
    answers = await post(client, body.replace(b'"n"', b'"other"'), "/documents?namespace=n")
    assert [answer["status"] for answer in answers] == ["inserted", "failed"]
    assert "for namespace 'n', got 'other'" in answers[1]["detail"]


async def test_an_empty_body_is_an_empty_answer(client: httpx.AsyncClient) -> None:
    assert await post(client, b"\n \n") == []


async def test_a_stream_cannot_be_a_job(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.post("/documents?wait=false", content=lines(1), headers=HEADERS)
    assert (response.status_code, response.json()["code"]) == (422, "wait_not_supported")
    assert engine.jobs.kept == {}


async def test_an_engine_that_refuses_the_first_line_refuses_the_request(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.refusal = NotReady("starting")
    response = await client.post("/documents", content=lines(3), headers=HEADERS)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "2"


async def test_openapi_shows_the_stream_beside_json(client: httpx.AsyncClient) -> None:
    post = (await client.get("/openapi.json")).json()["paths"]["/documents"]["post"]
    assert set(post["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    answers = post["responses"]["200"]["content"]["application/x-ndjson"]["schema"]["anyOf"]
    assert [answer["$ref"].rpartition("/")[2] for answer in answers] == [
        "LearnedLine",
        "FailedLine",
        "StreamStopped",
    ]


class Hands:
    """An engine, a client and a socket, all moved by the test."""

    def __init__(self) -> None:
        self.added: list[Future[list[DocumentResult]]] = []
        self.refusals: list[Exception] = []
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent = b""
        self.state = "ready"
        self.answer = BulkAdd(
            engine=self,  # type: ignore[arg-type]
            namespace=None,
            max_line_bytes=2 * MAX_IN_FLIGHT_BYTES,
            max_bytes=None,
        )

    def add(self, documents: Sequence[Document], **_: object) -> Future[list[DocumentResult]]:
        if self.refusals:
            raise self.refusals.pop(0)
        self.added.append(Future())
        return self.added[-1]

    def resolve(self, index: int, error: Exception | None = None) -> None:
        result = DocumentResult(
            id=str(index),
            status="failed" if error else "inserted",
            num_chunks=1,
            num_tokens=1,
            bank_version=1,
            error=error,
        )
        self.added[index].set_result([result])

    def outcomes(self) -> list[tuple[int, str, str | None, int | None]]:
        answers = [json.loads(line) for line in self.sent.splitlines()]
        return [(a["line"], a["status"], a.get("code"), a.get("retry_after_s")) for a in answers]

    def push(self, body: bytes, *, more: bool = True) -> None:
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def send(self, message: Any) -> None:
        self.sent += message.get("body", b"")

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.answer({"type": "http"}, self.parts.get, self.send))


async def settle() -> None:
    for _ in range(500):
        await asyncio.sleep(0)


async def test_reading_stops_while_too_many_documents_are_in_flight() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(MAX_IN_FLIGHT + 5), more=False)
    await settle()
    assert len(hands.added) == MAX_IN_FLIGHT
    hands.resolve(1)  # a later outcome waits for the first
    await settle()
    assert (len(hands.added), hands.sent) == (MAX_IN_FLIGHT, b"")
    hands.resolve(0)
    await asyncio.sleep(0.05)
    assert (len(hands.added), hands.sent.count(b"\n")) == (MAX_IN_FLIGHT + 2, 2)
    task.cancel()


async def test_large_lines_are_fewer_in_flight() -> None:
    hands = Hands()
    task = hands.start()
    line = b'{"text": "%s"}\n' % (b"x" * (MAX_IN_FLIGHT_BYTES // 3))
    hands.push(line * 4, more=False)
    await asyncio.sleep(0.5)
    assert len(hands.added) == 2
    task.cancel()


async def test_a_full_lane_is_waited_for_in_order() -> None:
    hands = Hands()
    hands.refusals = [Overloaded(lane="documents", max_queued=1, retry_after_s=0.001)] * 3
    task = hands.start()
    hands.push(lines(1), more=False)
    await asyncio.sleep(0.1)
    hands.resolve(0)
    await asyncio.wait_for(task, 5)
    assert json.loads(hands.sent)["status"] == "inserted"


async def test_a_refusal_in_the_middle_is_a_line() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(1))
    await settle()
    hands.refusals = [NotReady("draining")]
    hands.push(lines(1), more=False)
    hands.resolve(0)
    await asyncio.wait_for(task, 5)
    assert hands.outcomes() == [
        (1, "inserted", None, None),
        (2, "failed", "not_ready", 2),
        (2, "stopped", "not_ready", 2),
    ]


async def test_a_store_that_goes_away_stops_the_stream_and_the_last_line_says_where() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(4))
    await settle()
    hands.resolve(0)
    hands.resolve(1, StoreError("the store is away"))
    hands.resolve(2)  # was on its way, and tells its own outcome
    hands.resolve(3, StoreError("the store is away"))
    await asyncio.sleep(0.05)
    hands.push(lines(1) + b"{\n" + lines(1), more=False)
    await asyncio.wait_for(task, 5)
    assert hands.outcomes() == [
        (1, "inserted", None, None),
        (2, "failed", "store_unavailable", 2),
        (3, "inserted", None, None),
        (4, "failed", "store_unavailable", 2),
        (5, "failed", "store_unavailable", 2),
        (6, "failed", "malformed_json", None),
        (7, "failed", "store_unavailable", 2),
        (2, "stopped", "store_unavailable", 2),
    ]
    assert len(hands.added) == 4  # nothing more was handed to the engine
    assert (
        "stopped at line 2: the store is away" in json.loads(hands.sent.splitlines()[-1])["detail"]
    )


async def test_a_stream_that_stopped_ends_though_its_client_sends_on() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(2))
    await settle()
    hands.resolve(0)
    hands.resolve(1, StoreError("the store is away"))
    await asyncio.wait_for(task, 5)
    assert hands.outcomes()[-1] == (2, "stopped", "store_unavailable", 2)


async def test_a_server_that_stops_tells_a_silent_client_where_to_go_on() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(2) + b'{"text": "half a li')
    await settle()
    hands.resolve(0)
    hands.resolve(1)
    hands.state = "draining"
    await asyncio.wait_for(task, 5)
    assert hands.outcomes() == [
        (1, "inserted", None, None),
        (2, "inserted", None, None),
        (3, "stopped", "not_ready", 2),
    ]


async def test_a_failed_engine_stops_the_stream_at_the_first_line_it_took_with_it() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(4))
    await settle()
    hands.resolve(0)
    hands.state = "failed"
    for index in (1, 2, 3):
        hands.resolve(index, EngineFailed("the engine thread died"))
    await asyncio.wait_for(task, 5)
    assert hands.outcomes()[-1] == (2, "stopped", "engine_failed", None)


async def test_a_stream_that_was_learned_to_its_end_did_not_stop() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(1), more=False)
    await settle()
    hands.state = "draining"
    await asyncio.sleep(0.5)
    hands.resolve(0)
    await asyncio.wait_for(task, 5)
    assert hands.outcomes() == [(1, "inserted", None, None)]


async def test_a_record_that_cannot_be_used_fails_its_line_only() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(2), more=False)
    await settle()
    hands.resolve(1)
    hands.resolve(0, CorruptRecord("no checksum"))
    await asyncio.wait_for(task, 5)
    assert [outcome[1:3] for outcome in hands.outcomes()] == [
        ("failed", "corrupt_record"),
        ("inserted", None),
    ]


async def test_a_store_that_is_away_at_the_first_line_refuses_the_request(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = DocumentResult(
        id="a", status="failed", num_chunks=0, num_tokens=0, bank_version=0,
        error=StoreError("the store is away"),
    )  # fmt: skip
    monkeypatch.setattr(engine, "_add", lambda document, namespace: away)
    response = await client.post("/documents", content=lines(3), headers=HEADERS)
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    assert response.headers["retry-after"] == "2"


async def test_a_client_that_leaves_takes_what_is_queued_with_it() -> None:
    hands = Hands()
    task = hands.start()
    hands.push(lines(3))
    await settle()
    hands.parts.put_nowait({"type": "http.disconnect"})
    with pytest.raises(ClientGone):
        await asyncio.wait_for(task, 5)
    assert all(future.cancelled() for future in hands.added)
