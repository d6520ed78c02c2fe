"""`/namespaces`: made, listed, measured, written out, deleted."""

import json
from concurrent.futures import Future
from dataclasses import replace

import httpx
import pytest

from mac_core.errors import CorruptRecord
from mac_core.types import DocumentInfo
from tests.unit.server.fakes import NOW, FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_namespace_is_made_once(client: httpx.AsyncClient) -> None:
    made = await client.put("/namespaces/tenant-a")
    again = await client.put("/namespaces/tenant-a")
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json() == {"namespace": "tenant-a", "created": True, "bank_version": 1}
    assert again.json() == {"namespace": "tenant-a", "created": False, "bank_version": 1}
    (listed,) = (await client.get("/namespaces")).json()["namespaces"]
    assert (listed["namespace"], listed["documents"]) == ("tenant-a", 0)


async def test_one_namespace_shows_its_size_and_version(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"text": "Fine.", "namespace": "n"})
    body = (await client.get("/namespaces/n")).json()
    assert (body["namespace"], body["documents"], body["chunks"]) == ("n", 1, 1)
    assert (body["bank_version"], body["bytes"] > 0) == (1, True)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_namespace_is_404(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/namespaces/nowhere")
    assert (response.status_code, response.json()["code"]) == (404, "namespace_not_found")
    assert "'nowhere'" in response.json()["detail"]


async def test_a_deleted_namespace_is_gone_with_its_documents(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "a", "text": "Fine.", "namespace": "n"})
    deleted = await client.delete("/namespaces/n")
    assert deleted.json() == {
        "namespace": "n", "removed": True, "documents": 1, "bank_version": 2,
    }  # fmt: skip
    assert (await client.get("/documents/a", params={"namespace": "n"})).status_code == 404
    assert (await client.get("/namespaces")).json()["namespaces"] == []


async def test_a_strange_name_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.put("/namespaces/-a%20b")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


async def test_an_export_is_lines_that_can_be_posted_again(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    sent = [
        {"id": f"d{n}", "text": f"Text {n}.", "title": "T", "metadata": {"n": n},
         "published_at": "2026-01-31T12:00:00+00:00"}
        for n in range(120)
    ]  # fmt: skip
    await client.post("/documents", json={"documents": sent})
    response = await client.get("/namespaces/default/export")
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines == sent
    again = await client.post("/documents", json=lines[0] | {"namespace": "other"})
    assert again.status_code == 201


async def test_an_export_says_how_long_a_document_is_left(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/documents", json={"id": "a", "text": "Fine."})
    engine.documents["default"]["a"] = replace(
        engine.documents["default"]["a"], expires_at=NOW + 1e9
    )
    (line,) = (await client.get("/namespaces/default/export")).text.splitlines()
    assert json.loads(line)["ttl_seconds"] > 0


async def test_an_export_holds_what_is_pinned_and_goes_on_over_a_corrupt_record(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        await client.post("/documents", json={"id": name, "text": "Fine."})
    engine.documents["default"]["c"] = replace(engine.documents["default"]["c"], pinned=True)
    get = engine.get_document

    def corrupt(document_id: str, *, namespace: str) -> Future[DocumentInfo]:
        if document_id != "b":
            return get(document_id, namespace=namespace)
        failed = Future[DocumentInfo]()
        failed.set_exception(CorruptRecord("document 'b'"))
        return failed

    monkeypatch.setattr(engine, "get_document", corrupt)
    response = await client.get("/namespaces/default/export")
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"id": "a", "text": "Fine."},
        {"id": "c", "text": "Fine.", "pinned": True},
    ]


async def test_the_export_of_an_unknown_namespace_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/namespaces/nowhere/export")).status_code == 404
