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
        response = self._post("/ask", payload)
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

        A batch refused as a whole is sent again one by one, so that only the guilty fail.

        Raises:
            ServerRefused: the server cannot be reached or stays unavailable.
        """
        payload = {"documents": [item.payload for item in batch], "namespace": namespace}
        response = self._post("/documents", payload)
        if response.status_code in RETRYABLE:
            raise ServerRefused(_reason(response))
        if response.is_error and len(batch) > 1:
            for item in batch:
                self.add([item], namespace, report)
        elif response.is_error:
            report.fail(batch[0].origin, _reason(response))
        else:
            for item, result in zip(batch, response.json()["documents"], strict=True):
                if result["status"] == "failed":
                    report.fail(item.origin, f"{result['code']}: {result['detail']}")
                else:
                    report.counts[result["status"]] += 1

    def _post(self, path: str, payload: Payload) -> httpx.Response:
        """The last response, after as many attempts as 429 and 503 called for."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self._http.post(path, json=payload)
            except httpx.HTTPError as error:
                raise ServerRefused(f"{self._http.base_url} does not answer: {error}") from error
            if response.status_code not in RETRYABLE or attempt == MAX_ATTEMPTS - 1:
                break
            self._sleep(_retry_after_s(response, attempt))
        return response


def _retry_after_s(response: httpx.Response, attempt: int) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given) if given.isdecimal() else 2.0**attempt, MAX_RETRY_AFTER_S)


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        return f"{response.status_code} {body['code']}: {body['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.text[:200]}"
