"""The HTTP client behind `mac ingest` and `mac ask`: batches, retries, what became of each."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

BATCH_DOCUMENTS = 64
BATCH_BYTES = 4 * 1024**2  # half of the server's default limit of a body
MAX_ATTEMPTS = 8
MAX_RETRY_AFTER_S = 60.0
RETRYABLE = (429, 503)
RETRYABLE_CODES = ("not_ready", "overloaded", "store_unavailable")  # of one document of a batch

Payload = dict[str, Any]


class ServerRefused(Exception):
    """The server answered with a problem, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDocument:
    """One document and where it was read: `origin` is a file, or file:line."""

    origin: str
    payload: Payload
    num_bytes: int = 0  # of the file, for a progress bar


@dataclass(slots=True, kw_only=True)
class IngestReport:
    """What became of every document that was read."""

    num_read: int = 0  # documents; those of a batch that never got an answer are not in `counts`
    num_unread: int = 0  # files, lines or rows that gave no document
    counts: Counter[str] = field(default_factory=Counter)  # documents, by status
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out on purpose

    def fail(self, origin: str, reason: str) -> None:
        """A document that was read and not stored."""
        self.counts["failed"] += 1
        self.failures.append(f"{origin}: {reason}")

    def not_read(self, origin: str, reason: str) -> None:
        """Something that should have been a document."""
        self.num_unread += 1
        self.failures.append(f"{origin}: {reason}")

    def summary(self) -> str:
        """One line, whose numbers add up to what was read."""
        counts = dict(self.counts)
        counts["not sent"] = self.num_read - sum(counts.values())
        shown = [f"{count} {status}" for status, count in sorted(counts.items()) if count]
        unread = f"; {self.num_unread} could not be read" if self.num_unread else ""
        documents = "document" if self.num_read == 1 else "documents"
        return f"{self.num_read} {documents}: {', '.join(shown) or 'nothing sent'}{unread}"


def batches(documents: Iterable[SourceDocument]) -> Iterator[list[SourceDocument]]:
    """Cut into bodies of at most `BATCH_DOCUMENTS` documents and about `BATCH_BYTES`."""
    batch: list[SourceDocument] = []
    size = 0
    for document in documents:
        num_bytes = len(json.dumps(document.payload))
        if batch and (len(batch) == BATCH_DOCUMENTS or size + num_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += num_bytes
    if batch:
        yield batch


class Client:
    """Talks to one server; waits and tries again when it is asked to."""

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # No timeout on reading: the server's own deadlines end every request.
        timeout = httpx.Timeout(10.0, read=None)
        # A proxy that the environment names knows no server on this machine.
        is_local = httpx.URL(url).host in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.Client(
            base_url=url, timeout=timeout, transport=transport, trust_env=not is_local
        )
        self._sleep = sleep

    def close(self) -> None:
        self._http.close()

    def ask(self, payload: Payload) -> Payload:
        """Raises ServerRefused."""
        for attempt in range(MAX_ATTEMPTS):
            response = self._post("/ask", payload)
            if response.status_code not in RETRYABLE or attempt == MAX_ATTEMPTS - 1:
                break
            self._sleep(_retry_after_s(response, attempt))
        if response.is_error:
            raise ServerRefused(_reason(response))
        answer: Payload = response.json()
        return answer

    def request(self, method: str, path: str, payload: Payload | None = None) -> Payload:
        """One call without a second attempt. Raises ServerRefused."""
        try:
            response = self._http.request(method, path, json=payload)
        except httpx.HTTPError as error:
            raise ServerRefused(f"{self._http.base_url} does not answer: {error}") from error
        if response.is_error:
            raise ServerRefused(_reason(response))
        answer: Payload = response.json()
        return answer

    def add(self, batch: Sequence[SourceDocument], namespace: str, report: IngestReport) -> None:
        """Send one batch; every document of it ends in `report`.

        A batch refused as a whole is sent again one by one, so that only the guilty fail. Documents
        that failed with a code of `RETRYABLE_CODES` are sent again without the others; what still
        fails at the last attempt has failed.

        Raises:
            ServerRefused: the server cannot be reached or stays unavailable.
        """
        left = batch
        for attempt in range(MAX_ATTEMPTS):
            is_last = attempt == MAX_ATTEMPTS - 1
            payload = {"documents": [item.payload for item in left], "namespace": namespace}
            response = self._post("/documents", payload)
            if response.status_code in RETRYABLE:
                if is_last:
                    raise ServerRefused(_reason(response))
            elif response.is_error:
                self._add_apart(left, namespace, report, response)
                return
            else:
                left = _note(left, response.json()["documents"], report, is_last=is_last)
                if not left:
                    return
            self._sleep(_retry_after_s(response, attempt))

    def _add_apart(
        self,
        batch: Sequence[SourceDocument],
        namespace: str,
        report: IngestReport,
        refusal: httpx.Response,
    ) -> None:
        """One by one; a single one is what the server refused. Raises ServerRefused."""
        if len(batch) == 1:
            report.fail(batch[0].origin, _reason(refusal))
            return
        for item in batch:
            self.add([item], namespace, report)

    def _post(self, path: str, payload: Payload) -> httpx.Response:
        """Raises ServerRefused."""
        try:
            return self._http.post(path, json=payload)
        except httpx.HTTPError as error:
            raise ServerRefused(f"{self._http.base_url} does not answer: {error}") from error


def _note(
    batch: Sequence[SourceDocument],
    results: Sequence[Payload],
    report: IngestReport,
    *,
    is_last: bool,
) -> list[SourceDocument]:
    """Report what is settled; the documents that are to be sent again, none after the last time."""
    again: list[SourceDocument] = []
    for item, result in zip(batch, results, strict=True):
        if result["status"] != "failed":
            report.counts[result["status"]] += 1
        elif result["code"] in RETRYABLE_CODES and not is_last:
            again.append(item)
        else:
            report.fail(item.origin, f"{result['code']}: {result['detail']}")
    return again


def _retry_after_s(response: httpx.Response, attempt: int) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given) if given.isdecimal() else 2.0**attempt, MAX_RETRY_AFTER_S)


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        return f"{response.status_code} {body['code']}: {body['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.text[:200]}"
