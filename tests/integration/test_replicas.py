"""Two real servers on one real Redis: read your writes anywhere, and go on when Redis is gone.

`pytest -m slow -s tests/integration/test_replicas.py`, some minutes: writes each followed by a
question to the other server, and Redis away for 2 and for 30 s; each prints its figures. By default
the same is seen with a tiny model: `test_read_your_writes.py`, `unit/engine/test_replicas.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from redis.crc import key_slot

from mac_core.memory.redis_keys import NamespaceKeys
from tests.integration.server_process import ServerProcess
from tests.integration.test_kill import listed, make_client
from tests.redis_cluster_process import RedisClusterProcess
from tests.redis_process import RedisProcess

pytestmark = pytest.mark.slow  # starts of servers with the shipped bundle

NUM_ASKING = 2  # threads for each server
QUESTION = {"question": "What is the code of the vault?", "mode": "memory", "max_new_tokens": 4}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis", appendfsync="always")
    yield process
    process.kill()


@pytest.fixture
def replicas(tmp_path: Path, bundle: Path, redis: RedisProcess) -> Iterator[list[httpx.Client]]:
    with two_servers(tmp_path, bundle, redis.url) as clients:
        yield clients


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisClusterProcess]:
    process = RedisClusterProcess(tmp_path / "cluster")
    yield process
    process.stop()


@contextmanager
def two_servers(tmp_path: Path, bundle: Path, store_url: str) -> Iterator[list[httpx.Client]]:
    """Clients of two servers; neither has a data directory of its own."""

    def start(name: str) -> ServerProcess:
        return ServerProcess(tmp_path / name, bundle=bundle, store_url=store_url)

    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        processes = list(pool.map(start, ["a", "b"]))
        for process in processes:
            stack.callback(process.stop)
        yield [stack.enter_context(make_client(process.url)) for process in processes]
    assert not any((tmp_path / name / "bank.sqlite3").exists() for name in "ab")


def ready(client: httpx.Client) -> dict[str, Any]:
    body: dict[str, Any] = client.get("/readyz").raise_for_status().json()
    return body


def wait_until(condition: Callable[[], bool], *, within_s: float = 60.0) -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within_s, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.parametrize("rounds", [20, 1000])
def test_a_write_to_one_is_in_the_next_answer_of_the_other(
    replicas: list[httpx.Client], rounds: int
) -> None:
    write_and_ask(replicas, rounds)


def test_two_servers_over_a_cluster_when_one_of_its_primaries_dies(
    tmp_path: Path, bundle: Path, cluster: RedisClusterProcess
) -> None:
    """No replica takes its place: its namespaces wait, until it is back."""
    with two_servers(tmp_path, bundle, cluster.url) as clients:
        write_and_ask(clients, 100)
        a, b = clients
        lost = cluster.primary_of(key_slot(NamespaceKeys.of("default").meta.encode()))
        lost.kill()
        refused = a.post("/documents", json={"id": "late", "text": "Too late for this."})
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert [client.post("/ask", json=QUESTION).status_code for client in clients] == [200, 200]
        lost.start()
        wait_until(lambda: a.post("/documents", json={"id": "l", "text": "Now."}).is_success)
        wait_until(lambda: {one["id"] for one in listed(b)} >= {"vault", "l"})
        write_and_ask(clients, 20)


def write_and_ask(replicas: list[httpx.Client], rounds: int) -> None:
    """Each write to one server is followed by a question to the other."""
    behind: list[int] = []
    waits_s: list[float] = []
    for number in range(rounds):
        a, b = replicas if number % 2 else replicas[::-1]
        document = {"id": "vault", "text": f"The code of the vault is {number}."}
        written = a.post("/documents", json=document).raise_for_status().json()
        began = time.monotonic()
        body = QUESTION | {"min_version": written["bank_version"], "timeout_ms": 20_000}
        answer = b.post("/ask", json=body).raise_for_status().json()
        waits_s.append(time.monotonic() - began)
        snippet = answer["sources"][0]["snippet"]
        if answer["bank_version"] < written["bank_version"] or document["text"] not in snippet:
            behind.append(number)
    median_ms = 1000 * sorted(waits_s)[len(waits_s) // 2]
    print(f"\n{rounds} writes: stale {len(behind)}, median of the answers {median_ms:.0f} ms")
    assert behind == []
    assert all("vault" in [one["id"] for one in listed(client)] for client in replicas)


@dataclass
class Load:
    """Questions to both servers and documents to one, until `stopping`."""

    clients: list[httpx.Client]
    stopping: Event = field(default_factory=Event)
    asked: Counter[int] = field(default_factory=Counter)  # by status
    slowest_s: float = 0.0
    written: list[str] = field(default_factory=list)  # ids that were acknowledged
    refused: list[httpx.Response] = field(default_factory=list)
    written_at: list[float] = field(default_factory=list)  # monotonic seconds, of `written`

    def ask(self, url: httpx.URL) -> None:
        with make_client(str(url)) as client:
            while not self.stopping.is_set():
                began = time.monotonic()
                status = client.post("/ask", json=QUESTION).status_code
                self.asked[status] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def write(self, url: httpx.URL) -> None:
        number = 0
        with make_client(str(url)) as client:
            while not self.stopping.is_set():
                document = {"id": f"d{number}", "text": f"Entry {number} of the long archive."}
                response = client.post("/documents", json=document)
                if response.is_error:
                    self.refused.append(response)
                    self.stopping.wait(0.05)
                else:
                    self.written.append(f"d{number}")
                    self.written_at.append(time.monotonic())
                    number += 1

    def start(self) -> list[Thread]:
        works = [(self.ask, client) for client in self.clients for _ in range(NUM_ASKING)]
        works.append((self.write, self.clients[0]))
        threads = [Thread(target=work, args=(client.base_url,)) for work, client in works]
        for thread in threads:
            thread.start()
        return threads


@pytest.mark.parametrize("away_s", [2.0, 30.0])
def test_redis_killed_and_restarted_under_load(
    replicas: list[httpx.Client], redis: RedisProcess, away_s: float
) -> None:
    text = "The code of the vault is 1234."
    replicas[0].post("/documents", json={"id": "vault", "text": text}).raise_for_status()
    wait_until(lambda: ready(replicas[1])["bank_versions"] == {"default": 1})
    load = Load(clients=replicas)
    threads = load.start()
    try:
        wait_until(lambda: len(load.written) >= 5)
        redis.kill()
        wait_until(lambda: len(load.refused) > 0, within_s=60.0)
        Event().wait(away_s)
        states = [ready(client) for client in replicas]
        asked_while_away = load.asked.total()
        redis.start()
        back_at = time.monotonic()
        wait_until(lambda: load.written_at[-1] > back_at, within_s=60.0)
        recovery_s = load.written_at[-1] - back_at
        wait_until(lambda: len(load.written) >= 10)
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join(60.0)
    codes = Counter(response.status_code for response in load.refused)
    print(
        f"\nRedis away for {away_s} s: asked {dict(load.asked)}, {asked_while_away} of them by its "
        f"return, slowest {load.slowest_s:.2f} s; writes refused {dict(codes)}, acknowledged "
        f"{len(load.written)}; first write {recovery_s:.2f} s after its return"
    )
    assert set(load.asked) == {200}
    assert set(codes) == {503}
    assert all(int(response.headers["retry-after"]) >= 1 for response in load.refused)
    assert all((s["store"], s["store_state"]) == ("redis", "away") for s in states)
    assert all(state["lag_s"] > 0 for state in states)
    check_nothing_lost_or_doubled(replicas, load)


def check_nothing_lost_or_doubled(replicas: list[httpx.Client], load: Load) -> None:
    """Both servers hold what was acknowledged, once; both are in step again."""
    wait_until(lambda: len({str(ready(client)["bank_versions"]) for client in replicas}) == 1)
    for client in replicas:
        ids = Counter(str(document["id"]) for document in listed(client))
        assert set(load.written) <= set(ids)
        assert set(ids.values()) == {1}
        wait_until(lambda client=client: ready(client)["lag_s"] == 0.0)
        assert ready(client)["store_state"] == "open"
        assert ready(client)["documents"] == len(ids)


def test_a_server_killed_in_mid_stream_leaves_the_other_with_all_it_acknowledged(
    tmp_path: Path, bundle: Path, redis: RedisProcess
) -> None:
    from tests.integration.test_kill import stream_until_killed

    survivor = ServerProcess(tmp_path / "b", bundle=bundle, store_url=redis.url)
    try:
        stream, _ = stream_until_killed(
            tmp_path / "a", bundle, num_documents=60, seed=3, store_url=redis.url
        )
        assert stream.refusals == []
        with make_client(survivor.url) as client:
            documents = list(listed(client))
            wait_until(lambda: ready(client)["documents"] == len(documents))
        present = Counter(str(document["id"]) for document in documents)
        indices = Counter(document["metadata"]["index"] for document in documents)  # type: ignore[index]
        assert 0 < len(stream.acknowledged) < 60
        assert stream.acknowledged.keys() <= present.keys()
        assert set(present.values()) == set(indices.values()) == {1}
    finally:
        survivor.stop()
