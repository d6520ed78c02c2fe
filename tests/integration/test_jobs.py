"""Jobs on real servers: killed in the middle, taken over, given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.server_process import ServerProcess
from tests.integration.test_kill import listed, make_client, make_document
from tests.integration.test_replicas import wait_until
from tests.redis_process import RedisProcess

WITHIN_S = 240.0  # a machine busy with other work


def submit(client: httpx.Client, *, num_documents: int, seed: int) -> str:
    """The id of a new job with that many documents."""
    documents = [make_document(index, seed) for index in range(num_documents)]
    response = client.post("/documents?wait=false", json={"documents": documents})
    assert response.status_code == 202
    location = response.headers["location"]
    assert client.get(location).json()["id"] == response.json()["id"]
    return str(response.json()["id"])


def job(client: httpx.Client, name: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/jobs/{name}").raise_for_status().json()
    return body


def has_progress(client: httpx.Client, name: str) -> bool:
    return job(client, name)["state"] == "running" and bool(job(client, name)["results"])


@pytest.mark.slow  # two starts of a server; `unit/engine/test_jobs.py` sees it in one process
def test_a_job_killed_in_the_middle_is_finished_after_the_restart(
    tmp_path: Path, bundle: Path
) -> None:
    first = ServerProcess(tmp_path, bundle=bundle)
    with make_client(first.url) as client:
        name = submit(client, num_documents=64, seed=1)
        wait_until(lambda: has_progress(client, name), within_s=WITHIN_S)
        before = len(job(client, name)["results"])
        first.kill()
    second = ServerProcess(tmp_path, bundle=bundle)
    try:
        with make_client(second.url) as client:
            wait_until(lambda: job(client, name)["state"] == "done", within_s=WITHIN_S)
            done = job(client, name)
            documents = list(listed(client))
    finally:
        second.stop()
    print(f"\n{before} of 64 documents told before the kill, attempts {done['attempts']}")
    assert before < 64, "the kill came too late"
    assert (done["attempts"], done["reason"]) == (2, "its worker was lost in attempt 1")
    assert [result["status"] for result in done["results"][:before]] == ["inserted"] * before
    assert sum(done["counts"].values()) == 64
    assert "failed" not in done["counts"]
    indices = Counter(document["metadata"]["index"] for document in documents)  # type: ignore[index]
    assert indices == dict.fromkeys(range(64), 1)


@pytest.mark.slow  # waits for a lease to run out
def test_a_job_lost_in_its_only_attempt_is_dead_and_stays_listed(
    tmp_path: Path, bundle: Path
) -> None:
    first = ServerProcess(tmp_path, bundle=bundle, job_max_attempts="1")
    with make_client(first.url) as client:
        name = submit(client, num_documents=64, seed=2)
        wait_until(lambda: has_progress(client, name), within_s=WITHIN_S)
        first.kill()
    second = ServerProcess(tmp_path, bundle=bundle, job_max_attempts="1")
    try:
        with make_client(second.url) as client:
            wait_until(lambda: job(client, name)["state"] == "dead", within_s=WITHIN_S)
            (dead,) = client.get("/jobs", params={"state": "dead"}).json()["jobs"]
            refused = client.delete(f"/jobs/{name}")
            wait_until(lambda: 'mac_jobs{state="dead"} 1.0' in client.get("/metrics").text)
    finally:
        second.stop()
    assert (dead["id"], dead["reason"]) == (name, "its worker was lost in attempt 1")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_finished")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis", appendfsync="always")
    yield process
    process.kill()


@pytest.mark.slow  # waits for a lease to run out
def test_the_job_of_a_killed_server_is_finished_by_the_other(
    tmp_path: Path, bundle: Path, redis: RedisProcess
) -> None:
    def start(name: str) -> ServerProcess:
        return ServerProcess(tmp_path / name, bundle=bundle, store_url=redis.url, job_lease_s="3")

    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        killed, survivor = pool.map(start, ["a", "b"])
        stack.callback(survivor.stop)
        stack.callback(killed.kill)
        client = stack.enter_context(make_client(survivor.url))
        names = [submit(client, num_documents=48, seed=seed) for seed in (3, 4, 5)]
        # Two run at once, so each server has one.
        wait_until(
            lambda: sum(has_progress(client, name) for name in names) == 2, within_s=WITHIN_S
        )
        killed.kill()
        wait_until(
            lambda: {job(client, name)["state"] for name in names} == {"done"}, within_s=WITHIN_S
        )
        jobs = [job(client, name) for name in names]
        documents = list(listed(client))
    print(f"\nattempts {[body['attempts'] for body in jobs]}")
    assert sorted(body["attempts"] for body in jobs) == [1, 1, 2]
    assert {sum(body["counts"].values()) for body in jobs} == {48}
    assert not any("failed" in body["counts"] for body in jobs)
    texts = Counter(str(document["id"]) for document in documents)
    assert (len(texts), set(texts.values())) == (144, {1})


@pytest.mark.slow  # three starts of a server
def test_sigterm_gives_a_job_back_and_the_next_server_goes_on(tmp_path: Path, bundle: Path) -> None:
    first = ServerProcess(tmp_path, bundle=bundle, max_batch_chunks="2")  # a short last batch
    with make_client(first.url) as client:
        name = submit(client, num_documents=64, seed=6)
        wait_until(lambda: has_progress(client, name), within_s=WITHIN_S)
    assert first.stop() == 0
    second = ServerProcess(tmp_path, bundle=bundle)
    try:
        with make_client(second.url) as client:
            wait_until(lambda: job(client, name)["state"] == "done", within_s=WITHIN_S)
            done = job(client, name)
    finally:
        second.stop()
    assert done["attempts"] == 1  # an orderly stop is no failed attempt
    assert done["counts"] == {"inserted": 64}
