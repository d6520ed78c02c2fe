"""Kill -9 while documents stream in: what was acknowledged is there afterwards, once.

`pytest -m slow -s tests/integration/test_kill.py`: for each store one round of 60 documents and ten
of 1,000, each printing what was acknowledged, present and duplicate. By default
`test_hundred_kills.py` kills a server with a tiny model twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Condition, Event

import httpx
import pytest

from tests.integration.server_process import ServerProcess

NUM_WORKERS = 4
MAX_BATCH = 5
PAGE = 17  # small, so that the listing has many pages
TIMEOUT_S = 60.0
WORDS = ("river", "granite", "harvest", "signal", "copper", "meadow", "archive", "lantern")

JsonObject = dict[str, object]


@dataclass(slots=True)
class Stream:
    """Requests still to send, and the documents whose response arrived; any thread."""

    requests: list[list[JsonObject]]
    acknowledged: dict[str, int] = field(default_factory=dict)  # id: index of the document
    refusals: list[str] = field(default_factory=list)
    changed: Condition = field(default_factory=Condition)

    def take(self) -> list[JsonObject] | None:
        with self.changed:
            return self.requests.pop(0) if self.requests else None

    def record(self, request: Sequence[JsonObject], response: httpx.Response) -> None:
        with self.changed:
            if response.is_error:
                self.refusals.append(response.text)
            else:
                self.acknowledged |= zip(ids_of(response), indices_of(request), strict=True)
            self.changed.notify_all()

    def wait_for(self, num_acknowledged: int) -> None:
        def is_far_enough() -> bool:
            return len(self.acknowledged) >= num_acknowledged or bool(self.refusals)

        with self.changed:
            assert self.changed.wait_for(is_far_enough, timeout=10 * TIMEOUT_S)


def make_document(index: int, seed: int) -> JsonObject:
    """A text of its own per index; every other one leaves its id to the server."""
    random = Random(f"{seed}/{index}")
    words = " ".join(random.choices(WORDS, k=40))
    document: JsonObject = {
        "text": f"Entry {index} of stream {seed}: {words}.",
        "metadata": {"index": index},
    }
    return document | ({"id": f"stream/{seed}/{index}"} if index % 2 else {})


def make_requests(num_documents: int, seed: int) -> list[list[JsonObject]]:
    """The documents in order, singly and in small batches."""
    random = Random(seed)
    documents = [make_document(index, seed) for index in range(num_documents)]
    requests = []
    while documents:
        size = random.choice([1, 1, random.randint(2, MAX_BATCH)])
        requests.append(documents[:size])
        documents = documents[size:]
    return requests


def post(client: httpx.Client, request: Sequence[JsonObject]) -> httpx.Response:
    body = request[0] if len(request) == 1 else {"documents": request}
    return client.post("/documents", json=body)


def ids_of(response: httpx.Response) -> list[str]:
    body = response.json()
    return [outcome["id"] for outcome in body.get("documents", [body])]


def indices_of(request: Sequence[JsonObject]) -> list[int]:
    return [document["metadata"]["index"] for document in request]  # type: ignore[index]


def send(url: str, stream: Stream) -> None:
    """Post until the stream is empty or the server is gone."""
    with make_client(url) as client:
        while request := stream.take():
            try:
                stream.record(request, post(client, request))
            except httpx.TransportError:
                return


def make_client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S)


def listed(client: httpx.Client) -> Iterator[JsonObject]:
    """Every document of the default namespace, page by page."""
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/documents", params={"limit": PAGE, **cursor}).raise_for_status().json()
        yield from page["documents"]
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one kill left behind."""

    acknowledged: dict[str, int]
    present: dict[str, int]  # id: index
    num_listed: int
    refusals: list[str]
    answer: JsonObject
    num_after_resending: int

    @property
    def missing(self) -> dict[str, int]:
        return dict(self.acknowledged.items() - self.present.items())

    @property
    def num_duplicates(self) -> int:
        """Ids listed twice, and texts that stand under two ids."""
        twice = self.num_listed - len(self.present)
        return twice + sum(count - 1 for count in Counter(self.present.values()).values())


def stream_until_killed(
    data_dir: Path, bundle: Path, *, num_documents: int, seed: int, store_url: str | None = None
) -> tuple[Stream, list[list[JsonObject]]]:
    """Stream to a server that is killed at a random moment: the stream and all its requests."""
    random = Random(seed)
    requests = make_requests(num_documents, seed)
    stream = Stream(requests=list(requests))
    server = ServerProcess(data_dir, bundle=bundle, store_url=store_url)
    with ThreadPoolExecutor(NUM_WORKERS) as workers:
        try:
            senders = [workers.submit(send, server.url, stream) for _ in range(NUM_WORKERS)]
            stream.wait_for(random.randint(num_documents // 10, num_documents * 3 // 4))
            # Not always right after an acknowledgement: somewhere in the work that follows.
            Event().wait(random.uniform(0.0, 0.05))
        finally:
            server.kill()
        for sender in senders:
            sender.result()
    return stream, requests


def run_round(
    data_dir: Path,
    bundle: Path,
    *,
    num_documents: int,
    seed: int,
    resend: bool = False,
    store_url: str | None = None,
) -> Round:
    """Kill a server in mid-stream, start another on its store, and look.

    With `resend` the whole stream is then posted again, as a careful client would do.
    """
    stream, requests = stream_until_killed(
        data_dir, bundle, num_documents=num_documents, seed=seed, store_url=store_url
    )
    server = ServerProcess(data_dir, bundle=bundle, store_url=store_url)
    try:
        with make_client(server.url) as client:
            documents = list(listed(client))
            question = {"question": "Which entry names the violin?", "mode": "memory"}
            answer = client.post("/ask", json=question).raise_for_status().json()
            for request in requests if resend else []:
                post(client, request).raise_for_status()
            num_after_resending = sum(1 for _ in listed(client))
    finally:
        server.stop()
    return Round(
        acknowledged=stream.acknowledged,
        present={item["id"]: item["metadata"]["index"] for item in documents},  # type: ignore[misc, index]
        num_listed=len(documents),
        refusals=stream.refusals,
        answer=answer,
        num_after_resending=num_after_resending,
    )


def check(outcome: Round, *, num_documents: int) -> None:
    assert outcome.refusals == []
    assert 0 < len(outcome.acknowledged) < num_documents, "the kill came before or after the stream"
    assert outcome.missing == {}
    assert outcome.num_duplicates == 0
    assert outcome.answer["sources"] != []


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """None: SQLite in the data directory."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.mark.slow
def test_killed_server_keeps_what_it_acknowledged(
    tmp_path: Path, bundle: Path, store_url: str | None
) -> None:
    outcome = run_round(
        tmp_path / "data", bundle, num_documents=60, seed=0, resend=True, store_url=store_url
    )
    check(outcome, num_documents=60)
    assert outcome.num_after_resending == 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_kills_of_a_long_stream(
    tmp_path: Path, bundle: Path, seed: int, store_url: str | None
) -> None:
    outcome = run_round(
        tmp_path / "data", bundle, num_documents=1000, seed=seed, store_url=store_url
    )
    print(
        f"\nround {seed}: acknowledged {len(outcome.acknowledged)}, "
        f"present {len(outcome.present)}, missing {len(outcome.missing)}, "
        f"duplicates {outcome.num_duplicates}"
    )
    check(outcome, num_documents=1000)
