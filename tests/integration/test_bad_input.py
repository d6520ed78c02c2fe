"""Bad input over the whole HTTP layer: each gets its own clear answer, and no harm is done.

The engine is a fake that judges texts as the real one does; the body limits, the parsing, the
schema and the routes are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from server.settings import Settings
from tests.unit.server.fakes import FakeEngine, serving

pytestmark = pytest.mark.anyio

KEPT = {"id": "kept", "text": "The bridge opened in 1932.", "metadata": {"year": 1932}}
MIB = 1024**2
JSON_HEADERS = {"content-type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """Ends with the check that what was stored before is what is stored after."""
    async with serving(engine) as client:
        await client.post("/documents", json=KEPT)
        before = (await client.get("/documents/kept")).json()
        yield client
        assert (await client.get("/documents/kept")).json() == before
        listed = (await client.get("/documents")).json()["documents"]
        assert [item["id"] for item in listed] == ["kept"]
        assert (await client.get("/namespaces")).json()["namespaces"][0]["bank_version"] == 1


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert {"type", "title", "detail", "request_id"} <= set(body)
    assert body["request_id"] == response.headers["x-request-id"]
    assert len(response.content) < 8192  # nothing huge is echoed
    return body


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003", "\x00\x01\x02", "\x89PNG\x1a"], ids=ascii)
async def test_an_empty_or_binary_text_is_422(client: httpx.AsyncClient, text: str) -> None:
    check_problem(await client.post("/documents", json={"text": text}), 422, "invalid_input")


@pytest.mark.parametrize("text", ["", " \n", "\x00"], ids=ascii)
async def test_a_bad_text_does_not_touch_the_stored_document_of_its_id(
    client: httpx.AsyncClient, text: str
) -> None:
    body = {"id": "kept", "text": text}
    check_problem(await client.post("/documents", json=body), 422, "invalid_input")


@pytest.mark.parametrize("text", ["", " \n", "\x00"], ids=ascii)
async def test_a_bad_text_in_a_batch_fails_alone(engine: FakeEngine, text: str) -> None:
    async with serving(engine) as client:
        documents = [KEPT, {"id": "bad", "text": text}, {"id": "last", "text": "Fine."}]
        response = await client.post("/documents", json={"documents": documents})
        outcomes = response.json()["documents"]
        assert response.status_code == 200
        assert [item["status"] for item in outcomes] == ["inserted", "failed", "inserted"]
        assert outcomes[1]["code"] == "invalid_input"
        assert (await client.get("/documents/bad")).status_code == 404


async def test_ten_megabytes_are_413(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents", json={"text": "x" * 10 * MIB})
    body = check_problem(response, 413, "body_too_large")
    assert "8388608 bytes" in body["detail"]


async def test_ten_megabytes_without_a_declared_length_are_413(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"text": "'
        for _ in range(10):
            yield b"x" * MIB
        yield b'"}'

    response = await client.post("/documents", content=parts(), headers=JSON_HEADERS)
    check_problem(response, 413, "body_too_large")


async def test_a_body_above_the_limit_is_never_held(engine: FakeEngine) -> None:
    """The parts in flight are refused at the limit, not collected first."""
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(4):
            sent += 1024
            yield b"x" * 1024

    async with serving(engine, Settings(max_body_bytes=1024)) as client:
        response = await client.post("/documents", content=parts(), headers=JSON_HEADERS)
        check_problem(response, 413, "body_too_large")
        assert sent == 4096  # read to its end, so that the client gets to see the answer


async def test_a_text_above_the_character_limit_is_413(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents", json={"text": "word " * 200_001})
    body = check_problem(response, 413, "document_too_long")
    assert "1000005 characters, the limit is 1000000" in body["detail"]


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "caf\u00e9"}'.encode("latin-1"),
        '{"text": "cafe"}'.encode("utf-16"),
        '{"text": "cafe"}'.encode("utf-16-le"),
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "cut \xc3',
    ],
    ids=["latin-1", "utf-16", "utf-16-le", "surrogate", "cut"],
)
async def test_a_body_that_is_not_utf8_is_400(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/documents", content=content, headers=JSON_HEADERS)
    check_problem(response, 400, "not_utf8")


async def test_utf8_cut_between_parts_is_accepted(engine: FakeEngine) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for byte in '{"text": "caf\u00e9 \U0001f309"}'.encode():
            yield bytes([byte])

    async with serving(engine) as client:
        response = await client.post("/documents", content=parts(), headers=JSON_HEADERS)
        assert response.status_code == 201


@pytest.mark.parametrize(
    "content",
    [
        rb'{"text": "\ud800"}',
        rb'{"text": "x", "id": "\ud800"}',
        rb'{"text": "x", "title": "\udfff"}',
        rb'{"text": "x", "namespace": "\udfff"}',
        rb'{"text": "x", "metadata": {"a": "\ud800"}}',
        rb'{"text": "x", "metadata": {"\ud800": 1}}',
        rb'{"text": "x", "\ud800": 1}',
    ],
)
async def test_an_escaped_lone_surrogate_is_422(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/documents", content=content, headers=JSON_HEADERS)
    check_problem(response, 422, "invalid_input")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"text=hello",
        b'{"text": "x"} trailing',
        b"[" * 100_000,
        b'{"text": "x", "ttl_seconds": ' + b"9" * 5000 + b"}",
    ],
    ids=["open", "form", "trailing", "deep", "digits"],
)
async def test_a_body_that_is_not_json_is_400(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/documents", content=content, headers=JSON_HEADERS)
    check_problem(response, 400, "malformed_json")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'"text"', b"1", b"{}"])
async def test_json_that_is_no_document_is_422(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/documents", content=content, headers=JSON_HEADERS)
    check_problem(response, 422, "invalid_input")


@pytest.mark.parametrize(
    "change",
    [
        {"txt": "typo"},
        {"text": 1},
        {"text": None},
        {"id": 7},
        {"id": ""},
        {"id": "x" * 257},
        {"id": "line\nbreak"},
        {"title": "x" * 513},
        {"metadata": {"nested": {"a": 1}}},
        {"metadata": {"list": [1]}},
        {"metadata": {str(number): 1 for number in range(65)}},
        {"metadata": {"big": 2**63}},
        {"published_at": 1_769_860_800},
        {"published_at": "1769860800"},
        {"published_at": "2026-01-31"},
        {"published_at": "2026-01-31T12:00:00"},
        {"published_at": "2026-02-30T12:00:00Z"},
        {"published_at": "0001-01-01T00:00:00+14:00"},
        {"namespace": "no/slash"},
        {"namespace": ""},
        {"namespace": "x" * 65},
        {"ttl_seconds": 0},
        {"ttl_seconds": "60"},
        {"on_conflict": "replace"},
    ],
    ids=lambda change: str(change)[:40],
)
async def test_a_field_of_the_wrong_kind_is_422_and_named(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    response = await client.post("/documents", json={"text": "Fine.", **change})
    body = check_problem(response, 422, "invalid_input")
    assert body["errors"][0]["loc"][:2] == ["body", next(iter(change))]
    assert next(iter(change)) in body["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
async def test_numbers_that_are_not_finite_are_422(client: httpx.AsyncClient, number: str) -> None:
    content = f'{{"text": "x", "metadata": {{"n": {number}}}}}'.encode()
    response = await client.post("/documents", content=content, headers=JSON_HEADERS)
    check_problem(response, 422, "invalid_input")


async def test_257_documents_are_422(client: httpx.AsyncClient) -> None:
    documents = [{"id": str(number), "text": "Fine."} for number in range(257)]
    response = await client.post("/documents", json={"documents": documents})
    body = check_problem(response, 422, "too_many_documents")
    assert "256" in body["detail"]


async def test_256_documents_are_accepted(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        documents = [{"id": str(number), "text": "Fine."} for number in range(256)]
        response = await client.post("/documents", json={"documents": documents})
        assert response.status_code == 200
        assert len(response.json()["documents"]) == 256


async def test_an_empty_batch_is_422(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents", json={"documents": []})
    check_problem(response, 422, "invalid_input")


async def test_a_batch_for_two_namespaces_is_422(client: httpx.AsyncClient) -> None:
    documents = [{"text": "A.", "namespace": "a"}, {"text": "B.", "namespace": "b"}]
    response = await client.post("/documents", json={"documents": documents})
    body = check_problem(response, 422, "invalid_input")
    assert "one namespace" in body["detail"]


async def test_256_bad_documents_do_not_make_a_long_problem(client: httpx.AsyncClient) -> None:
    documents = [{"text": "x", "unknown" * 50: "y" * 1000} for _ in range(256)]
    response = await client.post("/documents", json={"documents": documents})
    assert response.status_code == 422
    assert len(response.json()["errors"]) == 20
    assert "yyy" not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/json; charset=latin-1"},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/documents", "/ask"])
async def test_another_content_type_is_415(
    client: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    content = b'{"text": "Fine."}'
    response = await client.post(path, content=content, headers=headers)
    check_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_json_in_utf8_may_be_declared_in_any_spelling(
    engine: FakeEngine, content_type: str
) -> None:
    async with serving(engine) as client:
        response = await client.post(
            "/documents", content=b'{"text": "Fine."}', headers={"content-type": content_type}
        )
        assert response.status_code == 201


@pytest.mark.parametrize(
    "document_id",
    [
        "a/b/c",
        "/leading",
        "trailing/",
        "a//b",
        "../up",
        "straße/日本語/🌉",
        "with space",
        "50%",
        "a?b#c&d=e",
        "a%2Fb",
        "x" * 256,
    ],
)
async def test_ids_with_slashes_and_unicode_work_everywhere(
    engine: FakeEngine, document_id: str
) -> None:
    async with serving(engine) as client:
        body = {"id": document_id, "text": "Fine."}
        assert (await client.post("/documents", json=body)).status_code == 201
        path = f"/documents/{quote(document_id, safe='')}"
        found = await client.get(path)
        assert (found.status_code, found.json()["id"]) == (200, document_id)
        removed = await client.delete(path)
        assert (removed.status_code, removed.json()["id"]) == (200, document_id)
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_id_is_404(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/documents/no/such/id")
    body = check_problem(response, 404, "document_not_found")
    assert "'no/such/id'" in body["detail"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_empty_id_is_422_and_removes_nothing(
    client: httpx.AsyncClient, method: str
) -> None:
    check_problem(await client.request(method, "/documents/"), 422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/documents?wait=false"),
        ("GET", "/documents?limt=3"),
        ("GET", "/documents?limit=0"),
        ("GET", "/documents?limit=1001"),
        ("GET", "/documents?limit=many"),
        ("GET", "/documents?namespace=no/slash"),
        ("GET", "/documents?metadata.a=1&metadata.a=2"),
        ("GET", "/documents?cursor=forged"),
        ("GET", "/documents/kept?verbose=1"),
        ("DELETE", "/documents/kept?namespace=no/slash"),
        ("GET", "/namespaces?limit=3"),
        ("POST", "/ask?stream=true"),
    ],
)
async def test_an_unknown_or_bad_query_parameter_is_422(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    body = {"question": "When?", "text": "Fine."} if method == "POST" else None
    check_problem(await client.request(method, path, json=body), 422, "invalid_input")


async def test_a_wait_that_is_neither_is_refused_by_name(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents?wait=perhaps", json={"text": "Fine."})
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", "wait"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v2/documents", 404, "not_found"),
        ("PUT", "/documents", 405, "method_not_allowed"),
        ("GET", "/ask", 405, "method_not_allowed"),
        ("PATCH", "/documents", 405, "method_not_allowed"),
    ],
)
async def test_no_such_route_is_a_problem_too(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    check_problem(await client.request(method, path), status, code)


async def test_405_says_what_is_allowed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/ask")).headers["allow"] == "POST"


@pytest.mark.parametrize(
    "change",
    [
        {"question": ""},
        {"question": " \n "},
        {"question": "\x00"},
        {"question": 3},
        {"question": None},
        {"mode": "rag"},
        {"top_k": -1},
        {"top_k": 1025},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": 257},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"timeout_ms": 0},
        {"min_version": -1},
        {"as_of": "yesterday"},
        {"filter": {"a": [1]}},
        {"namespace": "no space"},
        {"stream": True},
        {"questoin": "typo"},
    ],
    ids=str,
)
async def test_a_bad_field_of_a_question_is_422(
    client: httpx.AsyncClient, engine: FakeEngine, change: dict[str, Any]
) -> None:
    response = await client.post("/ask", json={"question": "When?", **change})
    check_problem(response, 422, "invalid_input")
    assert engine.questions == []


@pytest.mark.parametrize("num_tokens", [10_000, 100_000])
async def test_a_question_of_10_000_tokens_is_422(
    client: httpx.AsyncClient, num_tokens: int
) -> None:
    response = await client.post("/ask", json={"question": "when " * num_tokens})
    check_problem(response, 422, "question_too_long")


async def test_ask_on_an_empty_bank_answers_and_says_that_no_document_was_used() -> None:
    async with serving(FakeEngine()) as client:
        response = await client.post("/ask", json={"question": "When opened the bridge?"})
        assert response.status_code == 200
        body = response.json()
        assert body["answer"]
        assert (body["num_documents_used"], body["sources"]) == (0, [])
        assert (body["bank_version"], "no document was used" in body["note"]) == (0, True)


async def test_problems_are_ascii_whatever_was_sent(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents", json={"text": "x", "日本語": 1})
    assert response.content.isascii()
    assert json.loads(response.content)["errors"][0]["loc"] == ["body", "日本語"]
