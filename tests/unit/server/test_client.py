"""The client of `mac ingest`: batches, retries, of the whole and of single documents."""

import json
from collections.abc import Callable

import httpx
import pytest

from mac_core.errors import MacError
from server.client import (
    MAX_ATTEMPTS,
    RETRYABLE_CODES,
    Client,
    IngestReport,
    ServerRefused,
    SourceDocument,
    batches,
)
from server.problems import PROBLEMS, retry_advice_s

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


class Fickle:
    """A server that fails the documents of `codes` with their next code, while they have one."""

    def __init__(self, codes: dict[str, list[str]]) -> None:
        self._codes = codes
        self.sent: list[list[str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        ids = [item["id"] for item in json.loads(request.content)["documents"]]
        self.sent.append(ids)
        return httpx.Response(200, json={"documents": [self._result(name) for name in ids]})

    def _result(self, name: str) -> dict[str, str]:
        codes = self._codes.get(name)
        if not codes:
            return {"id": name, "status": "inserted"}
        return {"id": name, "status": "failed", "code": codes.pop(0), "detail": "a detail"}


@pytest.mark.parametrize("code", RETRYABLE_CODES)
def test_documents_that_may_be_sent_again_are_and_the_others_are_reported_at_once(
    code: str,
) -> None:
    server = Fickle({"0": ["invalid_input"], "1": [code, code], "2": [code]})
    waits: list[float] = []
    report = IngestReport()
    client_of(server, waits).add([source(number) for number in range(4)], "default", report)
    assert server.sent == [["0", "1", "2", "3"], ["1", "2"], ["1"]]
    assert waits == [1.0, 2.0]
    assert report.counts == {"inserted": 3, "failed": 1}
    assert report.failures == ["f:0: invalid_input: a detail"]


def test_a_document_that_fails_at_every_attempt_has_failed() -> None:
    server = Fickle({"1": ["store_unavailable"] * MAX_ATTEMPTS})
    waits: list[float] = []
    report = IngestReport()
    client_of(server, waits).add([source(0), source(1)], "default", report)
    assert (len(server.sent), len(waits)) == (MAX_ATTEMPTS, MAX_ATTEMPTS - 1)
    assert report.failures == ["f:1: store_unavailable: a detail"]


def test_attempts_of_the_whole_and_of_its_documents_are_counted_together() -> None:
    server = Fickle({"1": ["store_unavailable"]})
    answers = iter([server, *[lambda request: problem(503)] * MAX_ATTEMPTS])
    waits: list[float] = []
    report = IngestReport()
    client = client_of(lambda request: next(answers)(request), waits)
    with pytest.raises(ServerRefused, match="503 a_code"):
        client.add([source(0), source(1)], "default", report)
    assert len(waits) == MAX_ATTEMPTS - 1
    assert report.counts == {"inserted": 1}


def test_the_codes_that_are_sent_again_are_those_with_a_retry_in_the_problem_table() -> None:
    def bare(kind: type[MacError]) -> MacError:
        error = kind.__new__(kind)
        error.retry_after_s = 1.0  # type: ignore[attr-defined]  # of Overloaded
        return error

    marked = {code for kind, (_, code) in PROBLEMS.items() if retry_advice_s(bare(kind))}
    assert set(RETRYABLE_CODES) == marked


def test_no_server_is_said_with_its_address() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerRefused, match=r"http://test.* does not answer: refused"):
        client_of(answer, []).ask({"question": "When?"})
