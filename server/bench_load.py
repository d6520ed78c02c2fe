"""Closed-loop load on a running server: documents in batches, questions at a fixed concurrency.

Knows HTTP and nothing of how the server answers. Every run is bounded by its inputs and by a
deadline; a refused or failed request is counted by status and never repeated.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any

import httpx

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestFigures:
    """What posting documents took."""

    num_documents: int  # acknowledged
    num_failed: int
    batch_size: int
    seconds: float
    errors: Mapping[str, int]  # by status, or by the transport error's name

    @property
    def documents_per_s(self) -> float:
        return self.num_documents / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFigures:
    """What asking took at one mode and concurrency."""

    mode: str
    concurrency: int
    latencies_ms: tuple[float, ...]  # of answered questions, ascending
    seconds: float
    errors: Mapping[str, int]

    @property
    def questions_per_s(self) -> float:
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, share: float) -> float | None:
        """The latency that `share` of the answers did not exceed; nearest rank, never a blend."""
        if not self.latencies_ms:
            return None
        return self.latencies_ms[max(0, ceil(share * len(self.latencies_ms)) - 1)]


async def ingest(
    client: httpx.AsyncClient,
    documents: Sequence[Mapping[str, Any]],
    *,
    namespace: str,
    batch_size: int,
    deadline: float,
    advance: Advance = lambda amount: None,
) -> IngestFigures:
    """Post documents one batch after the other until done or `perf_counter()` is at `deadline`."""
    errors: Counter[str] = Counter()
    num_acknowledged = num_failed = 0
    started = perf_counter()
    for first in range(0, len(documents), batch_size):
        if perf_counter() >= deadline:
            break
        batch = [{**item, "namespace": namespace} for item in documents[first : first + batch_size]]
        status, body = await _post(client, "/documents", {"documents": batch})
        if status == "200":
            failed = sum(item["status"] == "failed" for item in body["documents"])
            num_acknowledged += len(batch) - failed
            num_failed += failed
        else:
            errors[status] += 1
        advance(len(batch))
    return IngestFigures(
        num_documents=num_acknowledged,
        num_failed=num_failed,
        batch_size=batch_size,
        seconds=perf_counter() - started,
        errors=dict(errors),
    )


async def ask(
    client: httpx.AsyncClient,
    questions: Sequence[str],
    *,
    namespace: str,
    mode: str,
    concurrency: int,
    deadline: float,
    advance: Advance = lambda amount: None,
) -> AskFigures:
    """Keep `concurrency` questions in flight, each asker sending its next after its last answer."""
    waiting = iter(questions)
    latencies_ms: list[float] = []
    errors: Counter[str] = Counter()

    async def asker() -> None:
        for question in waiting:  # shared: every question goes to one asker
            if perf_counter() >= deadline:
                return
            sent = perf_counter()
            payload = {"question": question, "mode": mode, "namespace": namespace}
            status, _ = await _post(client, "/ask", payload)
            if status == "200":
                latencies_ms.append(1000 * (perf_counter() - sent))
            else:
                errors[status] += 1
            advance(1)

    started = perf_counter()
    await asyncio.gather(*(asker() for _ in range(concurrency)))
    return AskFigures(
        mode=mode,
        concurrency=concurrency,
        latencies_ms=tuple(sorted(latencies_ms)),
        seconds=perf_counter() - started,
        errors=dict(errors),
    )


async def _post(client: httpx.AsyncClient, path: str, payload: Any) -> tuple[str, Any]:
    """The status and, for a 200, the body; a transport error is its own kind of status."""
    try:
        response = await client.post(path, json=payload)
        return str(response.status_code), response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError) as error:
        return type(error).__name__, None
