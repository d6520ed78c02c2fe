"""`/snapshots`: taken, listed, verified, restored, deleted, and each refusal by its code."""

import httpx
import pytest

from mac_core.errors import (
    CorruptSnapshot,
    ForeignSnapshot,
    MacError,
    NamespaceNotEmpty,
    Overloaded,
    SnapshotTooNew,
    StoreError,
)
from tests.unit.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_snapshot_says_what_it_holds(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"text": "Fine."})
    response = await client.post("/snapshots", json={"name": "monday"})
    body = response.json()
    assert (response.status_code, body["name"], body["format_version"]) == (201, "monday", 1)
    assert body["namespaces"] == [
        {"namespace": "default", "documents": 1, "bytes": 100, "bank_version": 1}
    ]
    assert body["left_out"] == [{"namespace": "default", "id": "bad"}]
    assert body["amortization_hashes"] == ["a" * 64]
    assert (await client.get("/snapshots")).json()["snapshots"] == [body]
    assert (await client.post("/snapshots/monday/verify")).json() == body


async def test_a_name_is_made_when_none_is_given(client: httpx.AsyncClient) -> None:
    assert (await client.post("/snapshots", json={})).json()["name"] == "now"


async def test_a_restore_says_the_new_versions(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/documents", json={"text": "Fine."})
    await client.post("/snapshots", json={"name": "s"})
    response = await client.post("/snapshots/s/restore", json={"replace": True})
    assert response.json() == {"documents": 1, "bank_versions": {"default": 2}}
    await client.post("/snapshots/s/restore", json={"namespaces": ["default"]})
    assert engine.snapshots.restored == [("s", None, True), ("s", ["default"], False)]


async def test_a_deleted_snapshot_is_gone(client: httpx.AsyncClient) -> None:
    await client.post("/snapshots", json={"name": "s"})
    assert (await client.delete("/snapshots/s")).json() == {"name": "s", "removed": True}
    response = await client.delete("/snapshots/s")
    assert (response.status_code, response.json()["code"]) == (404, "snapshot_not_found")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CorruptSnapshot("shard fails its checksum"), 409, "corrupt_snapshot"),
        (ForeignSnapshot("run `mac bank reindex`"), 409, "foreign_snapshot"),
        (SnapshotTooNew("format version 2"), 409, "snapshot_too_new"),
        (NamespaceNotEmpty(namespace="n", num_documents=3), 409, "namespace_not_empty"),
        (StoreError("No space left on device"), 503, "store_unavailable"),
    ],
)
async def test_a_refusal_has_its_code_and_says_why(
    client: httpx.AsyncClient, engine: FakeEngine, error: MacError, status: int, code: str
) -> None:
    engine.snapshots.failure = error
    response = await client.post("/snapshots/s/restore", json={})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["detail"] == str(error)


async def test_too_many_calls_are_429_and_say_when_to_retry(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> None:
        raise Overloaded(lane="snapshots", max_queued=64, retry_after_s=5.0)

    monkeypatch.setattr(engine.snapshots, "create", refuse)
    response = await client.post("/snapshots", json={})
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    assert response.headers["retry-after"] == "5"


async def test_a_taken_name_is_409(client: httpx.AsyncClient) -> None:
    await client.post("/snapshots", json={"name": "s"})
    response = await client.post("/snapshots", json={"name": "s"})
    assert (response.status_code, response.json()["code"]) == (409, "snapshot_exists")


@pytest.mark.parametrize("name", ["../etc", ".hidden", "a/b", "", "x" * 65])
async def test_a_name_that_is_a_path_is_refused(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/snapshots", json={"name": name})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
