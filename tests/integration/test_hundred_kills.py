"""Kill -9 again and again on one store, in the middle of adds, updates and deletions.

After each kill the next server must hold, of every document, the last state that was acknowledged
or the one that was being written; whole, and once. A tiny model with random weights, so that a kill
takes seconds. Default: two kills of each store. Acceptance:
`pytest -m slow -s tests/integration/test_hundred_kills.py`, a hundred of each.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event

import httpx
import pytest

from tests.builders import build_tiny_bundle
from tests.integration.forked_server import ForkedServer
from tests.integration.test_kill import JsonObject, listed, make_client

NUM_WORKERS = 4
IDS_PER_WORKER = 6
TIMEOUT_S = 120.0  # a machine busy with other work
MAX_WRITES = 400  # of one worker in one round: more than a server takes before it is killed
WORDS = ("river", "granite", "harvest", "signal", "copper", "meadow", "archive", "lantern")
State = int | None  # number of the write that made the document; None: not there


@dataclass
class Worker:
    """Writes to documents of its own, one request after the other; knows what was acknowledged."""

    name: str
    random: Random
    known: dict[str, State] = field(default_factory=dict)
    pending: dict[str, State] = field(default_factory=dict)  # sent, no answer
    num_writes: int = 0
    num_acknowledged: int = 0
    refusals: list[str] = field(default_factory=list)

    def write(self, url: str) -> None:
        """Until the server is gone."""
        with make_client(url) as client:
            for _ in range(MAX_WRITES):
                self._begin()
                try:
                    response = self._send(client)
                except httpx.TransportError:
                    return
                if response.is_error and response.status_code != 404:
                    self.refusals.append(response.text)
                    return
                self.known |= self.pending
                self.pending = {}
                self.num_acknowledged += 1

    def settle(self, found: dict[str, State]) -> list[str]:
        """Compare with what a server holds, and go on from there; what is wrong."""
        wrong = []
        for name in self.known.keys() | self.pending.keys():
            allowed = {self.known.get(name), self.pending.get(name, self.known.get(name))}
            if found.get(name) not in allowed:
                wrong.append(f"{name} is {found.get(name)}, not of {allowed}")
            self.known[name] = found.get(name)
        self.pending = {}
        return wrong

    def _begin(self) -> None:
        """Choose what is written next: one document, a few, or a deletion."""
        size = self.random.choice([1, 1, 1, 3])
        names = self.random.sample([f"{self.name}/{n}" for n in range(IDS_PER_WORKER)], size)
        self.num_writes += 1
        removes = size == 1 and self.random.random() < 0.25
        self.pending = dict.fromkeys(names, None if removes else self.num_writes)

    def _send(self, client: httpx.Client) -> httpx.Response:
        (first, number), *rest = self.pending.items()
        if number is None:
            return client.delete(f"/documents/{first}")
        documents = [document(name, number) for name, number in self.pending.items()]
        return client.post("/documents", json={"documents": documents} if rest else documents[0])


def document(name: str, number: State) -> JsonObject:
    """Text, title and metadata that belong to one write of one document."""
    words = " ".join(Random(f"{name}/{number}").choices(WORDS, k=30))
    text = f"write {number} of {name}: {words}."
    return {"id": name, "text": text, "title": f"{number}", "metadata": {"write": number}}


def look(client: httpx.Client) -> tuple[dict[str, State], list[str]]:
    """What the server holds, by id, and what of it is doubled or half there."""
    wrong: list[str] = []
    found: dict[str, State] = {}
    names = Counter(str(item["id"]) for item in listed(client))
    wrong += [f"{name} is listed {count} times" for name, count in names.items() if count > 1]
    for name in names:
        body = client.get(f"/documents/{name}").raise_for_status().json()
        number = body["metadata"]["write"]
        whole = document(name, number)
        if (body["text"], body["title"]) != (whole["text"], whole["title"]):
            wrong.append(f"{name} is half of {number}")
        found[name] = number
    ready = client.get("/readyz").raise_for_status().json()
    if (ready["documents"], ready["corrupt_records"]) != (len(names), 0):
        wrong.append(f"{len(names)} are stored, the bank says {ready}")
    return found, wrong


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_what_was_acknowledged_survives_every_kill(
    tmp_path: Path, store: str, kills: int, request: pytest.FixtureRequest
) -> None:
    url = None if store == "sqlite" else str(request.getfixturevalue("redis_url"))
    bundle = build_tiny_bundle(tmp_path / "tiny")
    workers = [Worker(f"w{n}", Random(f"{store}/{n}")) for n in range(NUM_WORKERS)]
    log = tmp_path / "server.log"
    chance, began, wrong = Random(store), time.monotonic(), []
    for number in range(kills):
        server = ForkedServer(tmp_path / "data", bundle=bundle, store_url=url, log=log)
        try:
            with make_client(server.url) as client:
                wrong += check(client, workers)
            with ThreadPoolExecutor(NUM_WORKERS) as pool:
                running = [pool.submit(worker.write, server.url) for worker in workers]
                wait_for(workers, chance.randint(1, 60))
                # Not always right after an acknowledgement: somewhere in the work that follows.
                Event().wait(chance.uniform(0.0, 0.05))
                server.kill()
                assert [future.result() for future in running] == [None] * NUM_WORKERS
        finally:
            server.kill()
        acknowledged = sum(worker.num_acknowledged for worker in workers)
        print(f"{store}: kill {number + 1}, {acknowledged} acknowledged", flush=True)
        assert wrong == []
    server = ForkedServer(tmp_path / "data", bundle=bundle, store_url=url, log=log)
    try:
        with make_client(server.url) as client:
            wrong += check(client, workers)
    finally:
        server.kill()
    acknowledged = sum(worker.num_acknowledged for worker in workers)
    sent = sum(worker.num_writes for worker in workers)
    print(
        f"\n{store}: {kills} kills, {acknowledged} of {sent} requests acknowledged, "
        f"wrong {len(wrong)}; {time.monotonic() - began:.0f} s"
    )
    assert wrong == []
    assert [worker.refusals for worker in workers] == [[]] * NUM_WORKERS
    assert 0 < acknowledged < sent, "no kill came in the middle of a write"


def wait_for(workers: list[Worker], num_acknowledged: int) -> None:
    """Until that many more requests were answered."""
    wanted = num_acknowledged + sum(worker.num_acknowledged for worker in workers)
    deadline = time.monotonic() + TIMEOUT_S
    while sum(worker.num_acknowledged for worker in workers) < wanted:
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.005)


def check(client: httpx.Client, workers: list[Worker]) -> list[str]:
    found, wrong = look(client)
    for worker in workers:
        wrong += worker.settle(found)
    known = {name for worker in workers for name in worker.known}
    return wrong + [f"{name} was never sent" for name in found.keys() - known]
