"""`/documents` and `/namespaces` over a fake engine."""

from collections.abc import Callable
from concurrent.futures import Future
from urllib.parse import unquote

import httpx
import pytest

from mac_core.errors import (
    BankFull,
    CorruptRecord,
    EngineFailed,
    ForeignRecord,
    InvalidInput,
    Overloaded,
    StoreError,
)
from mac_core.types import Document, DocumentResult
from tests.unit.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

TEXT = "The bridge opened in 1932."


async def test_a_new_document_is_201_with_its_outcome(client: httpx.AsyncClient) -> None:
    response = await client.post("/documents", json={"id": "bridge", "text": TEXT})
    assert response.status_code == 201
    assert response.json() == {
        "id": "bridge",
        "status": "inserted",
        "chunks": 1,
        "tokens": 5,
        "bank_version": 1,
    }


async def test_the_same_document_without_an_id_is_unchanged(client: httpx.AsyncClient) -> None:
    first = await client.post("/documents", json={"text": TEXT})
    second = await client.post("/documents", json={"text": TEXT})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["status"] == "unchanged"
    assert second.json()["id"] == first.json()["id"]
    assert second.json()["bank_version"] == first.json()["bank_version"]


async def test_another_text_under_the_same_id_updates(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "bridge", "text": TEXT})
    response = await client.post("/documents", json={"id": "bridge", "text": "It closed."})
    assert response.status_code == 200
    assert response.json()["status"] == "updated"
    assert (await client.get("/documents/bridge")).json()["text"] == "It closed."


async def test_on_conflict_fail_is_409(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "bridge", "text": TEXT})
    body = {"id": "bridge", "text": "Other.", "on_conflict": "fail"}
    response = await client.post("/documents", json=body)
    assert response.status_code == 409
    assert response.json()["code"] == "document_exists"
    assert "'bridge'" in response.json()["detail"]


async def test_a_batch_keeps_its_order_and_one_failure_to_itself(client: httpx.AsyncClient) -> None:
    documents = [{"id": "a", "text": TEXT}, {"id": "b", "text": " \n"}, {"id": "c", "text": TEXT}]
    response = await client.post("/documents", json={"documents": documents})
    assert response.status_code == 200
    body = response.json()
    assert [item["status"] for item in body["documents"]] == ["inserted", "failed", "inserted"]
    failed = body["documents"][1]
    assert set(failed) == {"id", "status", "code", "detail"}
    assert (failed["id"], failed["code"]) == ("b", "invalid_input")
    assert body["bank_version"] == 2


async def test_a_batch_goes_to_its_namespace(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"namespace": "news", "documents": [{"text": TEXT}]})
    namespaces = (await client.get("/namespaces")).json()["namespaces"]
    assert namespaces == [
        {"namespace": "news", "documents": 1, "chunks": 1, "bytes": 100, "bank_version": 1,
         "created_at": None, "updated_at": None}
    ]  # fmt: skip


async def test_documents_of_a_batch_may_name_one_namespace(client: httpx.AsyncClient) -> None:
    documents = [{"text": TEXT, "namespace": "news"}, {"text": "More.", "namespace": "news"}]
    response = await client.post("/documents", json={"documents": documents})
    assert response.status_code == 200
    assert (await client.get("/documents")).json()["documents"] == []
    listed = await client.get("/documents", params={"namespace": "news"})
    assert len(listed.json()["documents"]) == 2


async def test_all_fields_of_a_document_come_back(client: httpx.AsyncClient) -> None:
    body = {
        "id": "bridge",
        "text": TEXT,
        "title": "Bridges",
        "metadata": {"year": 1932, "steel": True, "city": "Sydney", "toll": 2.5, "old": None},
        "published_at": "2026-01-31T12:00:00+02:00",
        "ttl_seconds": 60,
    }
    await client.post("/documents", json=body)
    document = (await client.get("/documents/bridge")).json()
    assert document["metadata"] == body["metadata"]
    assert document["title"] == "Bridges"
    assert document["published_at"] == "2026-01-31T10:00:00Z"
    assert document["created_at"] == "2026-09-21T14:13:20Z"
    assert document["expires_at"] == "2026-09-21T14:14:20Z"
    assert document["text"] == TEXT


async def test_pages_follow_each_other_without_texts(client: httpx.AsyncClient) -> None:
    documents = [{"id": str(number), "text": f"Text {number}."} for number in range(3)]
    await client.post("/documents", json={"documents": documents})
    first = (await client.get("/documents", params={"limit": 2})).json()
    cursor = first["next_cursor"]
    second = (await client.get("/documents", params={"limit": 2, "cursor": cursor})).json()
    ids = [item["id"] for page in (first, second) for item in page["documents"]]
    assert ids == ["0", "1", "2"]
    assert second["next_cursor"] is None
    assert "text" not in first["documents"][0]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ({"metadata.year": "1932"}, ["number"]),
        ({"metadata.year": '"1932"'}, ["text"]),
        ({"metadata.city": "Sydney"}, ["number", "text"]),
        ({"metadata.city": "Sydney", "metadata.year": "1932"}, ["number"]),
        ({"metadata.city": "Perth"}, []),
    ],
)
async def test_list_keeps_what_the_metadata_filter_names(
    client: httpx.AsyncClient, parameter: dict[str, str], expected: list[str]
) -> None:
    documents = [
        {"id": "number", "text": "One.", "metadata": {"year": 1932, "city": "Sydney"}},
        {"id": "text", "text": "Two.", "metadata": {"year": "1932", "city": "Sydney"}},
    ]
    await client.post("/documents", json={"documents": documents})
    listed = (await client.get("/documents", params=parameter)).json()["documents"]
    assert [item["id"] for item in listed] == expected


@pytest.mark.parametrize("value", ["NaN", "1e999", "[1]", "{}", "9" * 5000])
async def test_a_filter_value_that_is_no_scalar_is_text(
    client: httpx.AsyncClient, value: str
) -> None:
    response = await client.get("/documents", params={"metadata.x": value})
    assert response.status_code == 200
    assert response.json()["documents"] == []


async def test_delete_says_what_it_removed_and_then_404(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "bridge", "text": TEXT})
    first = await client.delete("/documents/bridge")
    assert (first.status_code, first.json()) == (
        200,
        {"id": "bridge", "removed": True, "bank_version": 2},
    )
    second = await client.delete("/documents/bridge")
    assert (second.status_code, second.json()["code"]) == (404, "document_not_found")
    assert (await client.get("/documents/bridge")).status_code == 404


async def test_one_document_is_read_and_deleted_in_its_own_namespace(
    client: httpx.AsyncClient,
) -> None:
    # Defect 12: the same id may stand in another namespace, which is another's.
    news = {"namespace": "news"}
    await client.post("/documents", json={"id": "bridge", "text": TEXT})
    await client.post("/documents", json={"id": "bridge", "text": "It closed.", **news})
    read = await client.get("/documents/bridge", params=news)
    assert read.json()["text"] == "It closed."
    assert (await client.delete("/documents/bridge", params=news)).status_code == 200
    assert (await client.get("/documents/bridge", params=news)).status_code == 404
    assert (await client.get("/documents/bridge")).json()["text"] == TEXT


async def test_v1_is_the_same_handlers(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/documents", json={"id": "a/b", "text": TEXT})).status_code == 201
    assert (await client.get("/v1/documents/a/b")).json()["text"] == TEXT
    assert (await client.get("/documents/a/b")).json()["text"] == TEXT


AWAY, BLANK = StoreError("the store is away"), InvalidInput("document 'b' is blank")
CORRUPT = CorruptRecord("record 'a' fails its checksum")


def adding(*errors: Exception | None) -> Callable[..., Future[list[DocumentResult]]]:
    """An `add` whose documents end with these errors, in order."""

    def add(documents: list[Document], **_: object) -> Future[list[DocumentResult]]:
        future: Future[list[DocumentResult]] = Future()
        future.set_result(
            [
                DocumentResult(
                    id="", status="failed" if error else "inserted", num_chunks=0, num_tokens=0,
                    bank_version=0, error=error,
                )
                for _, error in zip(documents, errors, strict=True)
            ]
        )  # fmt: skip
        return future

    return add


@pytest.mark.parametrize("errors", [(AWAY, AWAY), (BLANK, AWAY), (CORRUPT, AWAY)])
async def test_a_batch_of_which_the_store_took_nothing_is_503(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    errors: tuple[Exception, ...],
) -> None:
    monkeypatch.setattr(engine, "add", adding(*errors))
    response = await client.post("/documents", json={"documents": [{"text": TEXT}, {"text": "x"}]})
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("errors", "codes"),
    [
        ((None, AWAY), [None, "store_unavailable"]),
        ((BLANK, CORRUPT), ["invalid_input", "corrupt_record"]),
        ((CORRUPT, CORRUPT), ["corrupt_record", "corrupt_record"]),
    ],
)
async def test_a_batch_that_no_repeat_would_help_as_a_whole_is_200(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    errors: tuple[Exception | None, ...],
    codes: list[str | None],
) -> None:
    monkeypatch.setattr(engine, "add", adding(*errors))
    response = await client.post("/documents", json={"documents": [{"text": TEXT}, {"text": "x"}]})
    assert response.status_code == 200
    assert [item.get("code") for item in response.json()["documents"]] == codes


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreError("the disk is full"), 503, "store_unavailable"),
        (ForeignRecord("record 'a' is another model's"), 503, "foreign_record"),
        (CorruptRecord("record 'a' fails its checksum"), 503, "corrupt_record"),
        (EngineFailed("secret internals"), 500, "engine_failed"),
        (RuntimeError("secret internals"), 500, "internal_error"),
    ],
)
async def test_an_engine_error_is_its_row_of_the_table(
    client: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, code: str
) -> None:
    engine.refusal = error
    response = await client.post("/documents", json={"text": TEXT})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    # A corrupt record is the same at the next try.
    assert ("retry-after" in response.headers) == (code == "store_unavailable")


@pytest.mark.parametrize("name", [".", ".."])
async def test_an_id_that_no_url_can_name_is_422(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/documents", json={"id": name, "text": TEXT})
    assert response.status_code == 422
    assert "no URL can name" in response.json()["detail"]


@pytest.mark.parametrize("name", ["...", "a..b", ".a", "a/.b/c.", "..%2Fa"])
async def test_dots_in_an_id_are_fine_otherwise(client: httpx.AsyncClient, name: str) -> None:
    body = {"id": unquote(name), "text": TEXT}
    assert (await client.post("/documents", json=body)).status_code == 201
    found = await client.get(f"/documents/{name}")
    assert (found.status_code, found.json()["id"]) == (200, unquote(name))


async def test_a_full_queue_is_429_and_says_when_to_retry(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.refusal = Overloaded(lane="documents", max_queued=4, retry_after_s=2.3)
    response = await client.post("/documents", json={"text": TEXT})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["retry_after_s"] == 3
    assert "limit of 4" in response.json()["detail"]


async def test_a_full_bank_is_507(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.refusal = BankFull(namespace="default", what="documents", size=11, limit=10)
    response = await client.post("/documents", json={"text": TEXT})
    assert (response.status_code, response.json()["code"]) == (507, "bank_full")
    assert "limit is 10" in response.json()["detail"]
    assert "retry-after" not in response.headers


async def test_pinned_is_shown_wherever_a_document_is(client: httpx.AsyncClient) -> None:
    await client.post("/documents", json={"id": "a", "text": TEXT, "pinned": True})
    await client.post("/documents", json={"id": "b", "text": TEXT})
    listed = (await client.get("/documents")).json()["documents"]
    assert [item["pinned"] for item in listed] == [True, False]
    assert (await client.get("/documents/a")).json()["pinned"] is True
    response = await client.post("/documents", json={"text": TEXT, "pinned": "yes"})
    assert response.status_code == 422


@pytest.mark.parametrize("path", ["/documents", "/v1/documents"])
async def test_delete_by_filter_forgets_what_matches_and_nothing_else(
    client: httpx.AsyncClient, path: str
) -> None:
    for name, number in (("a", 1), ("b", 2), ("c", 1)):
        document = {"id": name, "text": f"Entry {name}.", "metadata": {"n": number}}
        await client.post("/documents", json=document)
    response = await client.delete(f"{path}?metadata.n=1")
    assert (response.status_code, response.json()) == (200, {"removed": 2, "bank_version": 4})
    listed = (await client.get("/documents")).json()["documents"]
    assert [document["id"] for document in listed] == ["b"]
    again = await client.delete(f"{path}?metadata.n=1")
    assert again.json() == {"removed": 0, "bank_version": 4}


@pytest.mark.parametrize("query", ["", "?namespace=default", "?limit=1", "?metadata.n=1&x=2"])
async def test_delete_of_everything_or_of_what_is_not_understood_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, query: str
) -> None:
    await client.post("/documents", json={"id": "a", "text": "One.", "metadata": {"n": 1}})
    response = await client.delete(f"/documents{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    assert list(engine.documents["default"]) == ["a"]
