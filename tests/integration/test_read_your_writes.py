"""Two servers on one Redis: a question to B with the version of a write to A has seen that write.

A tiny model with random weights, so that many writes take minutes. Default: 50. Acceptance:
`pytest -m slow -s tests/integration/test_read_your_writes.py`, 10,000, printing the figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.builders import build_tiny_bundle
from tests.integration.forked_server import ForkedServer
from tests.integration.test_kill import make_client
from tests.redis_process import RedisProcess

QUESTION = {"question": "what is the code of the dam?", "mode": "memory", "max_new_tokens": 1}


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[httpx.Client]]:
    """Clients of two servers with a tiny model."""
    bundle = build_tiny_bundle(tmp_path / "tiny")
    redis = RedisProcess(tmp_path / "redis", appendfsync="everysec")

    def start(name: str) -> ForkedServer:
        log = tmp_path / f"{name}.log"
        return ForkedServer(tmp_path / name, bundle=bundle, store_url=redis.url, log=log)

    with ExitStack() as stack:
        stack.callback(redis.kill)
        processes = [start(name) for name in ("a", "b")]
        for process in processes:
            stack.callback(process.kill)
        yield [stack.enter_context(make_client(process.url)) for process in processes]


@pytest.mark.parametrize("writes", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_answer_is_older_than_the_write_before_it(
    replicas: list[httpx.Client], writes: int
) -> None:
    a, b = replicas
    stale: list[int] = []
    waits_s: list[float] = []
    began = time.monotonic()
    for number in range(writes):
        # Three documents that are written again and again: stale ones would be at hand.
        document = {"id": f"dam{number % 3}", "text": f"the code of the dam is {number}."}
        written = a.post("/documents", json=document).raise_for_status().json()
        asked_at = time.monotonic()
        body = QUESTION | {"min_version": written["bank_version"], "timeout_ms": 20_000, "top_k": 0}
        answer = b.post("/ask", json=body).raise_for_status().json()
        waits_s.append(time.monotonic() - asked_at)
        read = {source["id"]: source["snippet"] for source in answer["sources"]}
        has_seen = document["text"] in read.get(document["id"], "")
        if not has_seen or answer["bank_version"] < written["bank_version"]:
            stale.append(number)
        if number % 500 == 499:
            print(f"{number + 1} writes, {len(stale)} stale", flush=True)
    waits_s.sort()
    median_ms, p99_ms = (1000 * waits_s[int(share * len(waits_s))] for share in (0.5, 0.99))
    print(
        f"\n{writes} writes to A, each followed by a question to B: stale {len(stale)}; answers "
        f"p50 {median_ms:.1f} ms, p99 {p99_ms:.1f} ms; {time.monotonic() - began:.0f} s in all"
    )
    assert stale == []
