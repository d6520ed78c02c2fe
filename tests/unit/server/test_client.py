"""The client of `mac ingest`: batches, retries."""

import json
from collections.abc import Callable

import httpx
import pytest

from server.client import Client, IngestReport, ServerRefused, SourceDocument, batches

Answer = Callable[[httpx.Request], httpx.Response]


def source(number: int, text: str = "Fine.") -> SourceDocument:
    return SourceDocument(origin=f"f:{number}", payload={"id": str(number), "text": text})


def learned(request: httpx.Request) -> httpx.Response:
    documents = json.loads(request.content)["documents"]
    results = [{"id": item["id"], "status": "inserted"} for item in documents]
    return httpx.Response(200, json={"documents": results})


def problem(status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json={"code": "a_code", "detail": "a detail"}, headers=headers)


def client_of(answer: Answer, waits: list[float]) -> Client:
    return Client("http://test", transport=httpx.MockTransport(answer), sleep=waits.append)


def test_batches_hold_at_most_64_documents_each_once() -> None:
    documents = [source(number) for number in range(130)]
    cut = list(batches(documents))
    assert [len(batch) for batch in cut] == [64, 64, 2]
    assert [item for batch in cut for item in batch] == documents


def test_large_documents_make_smaller_batches() -> None:
    documents = [source(number, "x" * 3 * 1024**2) for number in range(3)]
    assert [len(batch) for batch in batches(documents)] == [1, 1, 1]


@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_as_long_as_it_is_told_and_tries_again(status: int) -> None:
    answers = iter([problem(status, {"retry-after": "7"}), problem(status)])
    waits: list[float] = []
    client = client_of(lambda request: next(answers, None) or learned(request), waits)
    report = IngestReport()
    client.add([source(0)], "default", report)
    assert (waits, report.counts) == ([7.0, 2.0], {"inserted": 1})


def test_a_server_that_stays_unavailable_ends_the_run() -> None:
    waits: list[float] = []
    client = client_of(lambda request: problem(503), waits)
    with pytest.raises(ServerRefused, match="503 a_code: a detail"):
        client.add([source(0)], "default", IngestReport())
    assert len(waits) == 7


def test_a_batch_refused_as_a_whole_fails_only_the_guilty() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return problem(422) if b"guilty" in request.content else learned(request)

    report = IngestReport()
    client = client_of(answer, [])
    client.add([source(0), source(1, "guilty"), source(2)], "default", report)
    assert report.counts == {"inserted": 2, "failed": 1}
    assert report.failures == ["f:1: 422 a_code: a detail"]


def test_a_failed_document_of_a_batch_is_reported_with_its_origin() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        failed = {"id": "0", "status": "failed", "code": "invalid_input", "detail": "is blank"}
        return httpx.Response(200, json={"documents": [failed]})

    report = IngestReport()
    client_of(answer, []).add([source(0)], "default", report)
    assert report.failures == ["f:0: invalid_input: is blank"]


def test_no_server_is_said_with_its_address() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerRefused, match=r"http://test.* does not answer: refused"):
        client_of(answer, []).ask({"question": "When?"})
