"""Several engines on one Redis: each has what the others wrote, and answers when it is away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mac_core.config import EngineConfig
from mac_core.engine import Engine, following
from mac_core.engine.offline import amortize_chunks, cut_document
from mac_core.errors import BankBehind, StoreError
from mac_core.memory.bank import BankView
from mac_core.memory.records import DocumentRecord
from mac_core.memory.redis_store import RedisStore
from mac_core.types import Answer, Document, DocumentResult, Fingerprint, Question
from tests.redis_process import RedisProcess
from tests.unit.engine.conftest import outcome
from tests.unit.engine.fakes import FINGERPRINT, WAIT_S, FakeModel, Gate

RECOVERY_S = 5.0


class Replica:
    """An engine on the tests' Redis."""

    def __init__(
        self, url: str, *, fingerprint: Fingerprint = FINGERPRINT, max_changes: int = 10_000
    ) -> None:
        self.model = FakeModel(fingerprint=fingerprint)
        self.stores: list[RedisStore] = []

        def open_store(fingerprint: Fingerprint) -> RedisStore:
            opened = RedisStore(url, fingerprint=fingerprint, max_changes=max_changes)
            self.stores.append(opened)
            return opened

        self.engine = Engine(
            bundle=Path("fake"),
            store_directory=Path("nowhere"),
            config=EngineConfig(max_batch_chunks=4),
            load=lambda: self.model,
            open_store=open_store,
        )
        self.engine.start()

    def learn(self, *documents: Document, namespace: str = "default") -> list[DocumentResult]:
        return outcome(self.engine.add(documents, namespace=namespace))

    def ask(self, text: str, **options: object) -> Answer:
        return outcome(self.engine.ask(Question(text=text, **options)))

    def view(self, namespace: str = "default") -> BankView:
        serving = self.engine._thread.serving
        assert serving is not None
        return serving.bank.view(namespace)

    def wait_for(self, version: int, namespace: str = "default") -> None:
        wait_until(lambda: self.engine.bank_version(namespace) == version)


def wait_until(condition: Callable[[], bool], *, within_s: float = WAIT_S) -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within_s, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - began


def fact(number: int, code: str | None = None) -> Document:
    code = code or f"Alpha{number}"
    return Document(id=f"d{number}", text=f"The code of vault {number} is {code}. Keep it.")


def same(left: BankView, right: BankView) -> bool:
    """Bit for bit, but for how rows are numbered."""

    def told(view: BankView) -> list[tuple[object, ...]]:
        return [(e.document_id, e.chunk, e.text, e.title, e.expires_at) for e in view.entries]

    pairs = [
        (mine[1], other[1])
        for a, b in zip(left.entries, right.entries, strict=True)
        for mine, other in zip(a.stored.tensors(), b.stored.tensors(), strict=True)
    ]
    return (
        (left.version, left.num_documents, left.num_bytes)
        == (right.version, right.num_documents, right.num_bytes)
        and told(left) == told(right)
        and torch.equal(left.selection_keys, right.selection_keys)
        and all(torch.equal(mine, other) for mine, other in pairs)
    )


MakeReplica = Callable[..., Replica]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WAIT_S", 0.05)
    monkeypatch.setattr(following, "CHECK_S", 0.5)


@pytest.fixture
def make_replica(redis_url: str) -> Iterator[MakeReplica]:
    made: list[Replica] = []

    def make(url: str = redis_url, **options: object) -> Replica:
        made.append(Replica(url, **options))  # type: ignore[arg-type]
        assert made[-1].engine.wait_until_ready(timeout_s=WAIT_S), made[-1].engine.status().detail
        return made[-1]

    yield make
    for replica in made:
        replica.engine.close(now=True)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis")
    yield process
    process.kill()


def test_what_one_wrote_the_other_answers_from(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    (result,) = a.learn(fact(7))
    answer = b.ask("What is the code of vault 7?", min_version=result.bank_version)
    assert (answer.text, answer.bank_version) == ("Alpha7", 1)
    assert same(a.view(), b.view())


def test_each_of_many_writes_is_there_for_the_next_question(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    for number in range(20):
        (result,) = a.learn(fact(0, f"Beta{number}"))
        answer = b.ask("What is the code of vault 0?", min_version=result.bank_version)
        assert answer.text == f"Beta{number}"


def test_a_namespace_that_is_new_is_followed(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    for namespace in ("one", "t{w}o", "\u4e2d"):
        (result,) = a.learn(fact(1), namespace=namespace)
        question = Question(
            text="What is the code of vault 1?", namespace=namespace, min_version=1, timeout_ms=5000
        )
        assert outcome(b.engine.ask(question)).text == "Alpha1"
        assert result.bank_version == 1


def test_a_removal_reaches_the_other(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    a.learn(*(fact(number) for number in range(6)))
    removed = outcome(b.engine.remove(["d2", "d4"]))
    assert removed.removed_ids == ("d2", "d4")
    a.wait_for(removed.bank_version)
    assert same(a.view(), b.view())
    assert [entry.document_id for entry in a.view().entries] == ["d0", "d1", "d3", "d5"]


def test_a_document_that_another_wrote_is_unchanged_at_its_version(
    make_replica: MakeReplica,
) -> None:
    a, b = make_replica(), make_replica()
    gate = Gate()
    b.model.on_answer = gate
    asked = b.engine.ask(Question(text="Is the engine thread busy?"))
    gate.wait_until_reached()
    (written,) = a.learn(fact(1))
    again = b.engine.add([fact(1)])
    gate.open()
    outcome(asked)
    assert outcome(again)[0].status == "unchanged"
    assert outcome(again)[0].bank_version == written.bank_version == 1


def test_writers_that_take_turns_have_the_same_bank(make_replica: MakeReplica) -> None:
    replicas = [make_replica(), make_replica()]
    chance = random.Random(5)
    futures: list[object] = []
    for step in range(60):
        writer = chance.choice(replicas).engine
        numbers = chance.sample(range(12), chance.randint(1, 4))
        if chance.random() < 0.3:
            futures.append(writer.remove([f"d{number}" for number in numbers]))
        else:
            futures.append(writer.add([fact(number, f"Code{step}") for number in numbers]))
    for future in futures:
        outcome(future)  # type: ignore[arg-type]
    version = replicas[0].stores[0].version("default")
    for replica in replicas:
        replica.wait_for(version)
    fresh = make_replica()
    assert same(replicas[0].view(), replicas[1].view())
    assert same(replicas[0].view(), fresh.view())


def test_a_stream_that_was_trimmed_is_made_good(
    make_replica: MakeReplica, redis_server: RedisProcess
) -> None:
    a, b = make_replica(max_changes=1), make_replica(max_changes=1)
    a.learn(*(fact(number) for number in range(8)))
    b.wait_for(2)
    gate = Gate()
    b.model.on_answer = gate
    asked = b.engine.ask(Question(text="Is the engine thread busy?"))
    gate.wait_until_reached()
    for number in range(40):
        a.learn(fact(number % 5, f"Gamma{number}"))
    outcome(a.engine.remove(["d7"]))
    with redis_server.client() as client:
        assert client.xlen("mac:{default}:changes") < 40
    gate.open()
    outcome(asked)
    b.wait_for(43)
    assert same(a.view(), b.view())


def test_another_history_with_the_same_version_is_noticed(
    make_replica: MakeReplica, redis_server: RedisProcess
) -> None:
    a = make_replica()
    a.learn(fact(1))
    a.learn(fact(2))
    with redis_server.client() as client:
        client.flushall()
    other = make_replica()
    other.learn(fact(3, "Omega3"))
    other.learn(fact(1, "Omega1"))
    wait_until(lambda: a.view().entries[-1].text.endswith("Omega1. Keep it."))
    assert same(a.view(), other.view())


def test_a_write_on_top_of_another_history_is_not_taken_for_the_next(
    make_replica: MakeReplica, redis_server: RedisProcess
) -> None:
    a = make_replica()
    a.learn(fact(1))
    with redis_server.client() as client:
        client.flushall()
    other = make_replica()
    other.learn(fact(3))
    (result,) = a.learn(fact(2))
    assert result.bank_version == 2
    a.wait_for(2)
    assert [entry.document_id for entry in a.view().entries] == ["d3", "d2"]


def record_of(document: Document) -> DocumentRecord:
    """As another engine would store it."""
    model = FakeModel()
    chunks = cut_document(model, document.text)
    return DocumentRecord(
        id=document.id or "", namespace="default", title=None, text=document.text, metadata={},
        published_at=None, expires_at=None, created_at=1.0, updated_at=1.0, content_hash="h",
        num_tokens=9, chunks=tuple(amortize_chunks(model, chunks, batch_size=4)),
    )  # fmt: skip


def test_other_networks_records_stop_a_namespace_and_nothing_else(
    make_replica: MakeReplica, redis_url: str
) -> None:
    a, b = make_replica(), make_replica()
    a.learn(fact(1))
    b.wait_for(1)
    with closing(
        RedisStore(redis_url, fingerprint=replace(FINGERPRINT, base_lm_hash="f" * 64))
    ) as store:
        store.put("theirs", [replace(record_of(fact(2)), namespace="theirs")])
    (result,) = a.learn(fact(3))
    assert b.ask("What is the code of vault 3?", min_version=result.bank_version).text == "Alpha3"
    wait_until(lambda: "ForeignRecord" in b.engine.status().detail)
    assert b.engine.status().state == "ready"
    assert b.engine.bank_version("theirs") == 0
    status = b.engine.status()
    told = [(one.namespace, one.bank_version, one.lag_versions) for one in status.namespaces]
    assert told == [("default", 2, 0), ("theirs", 0, 1)]
    assert status.lag_versions == 1


def test_expired_documents_go_once_and_everywhere(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    a.learn(Document(id="soon", text="The code of vault 1 is Brief.", ttl_s=0.2), fact(2))
    wait_until(lambda: b.engine.bank_version("default") == a.engine.bank_version("default") == 2)
    assert [entry.document_id for entry in b.view().entries] == ["d2"]


def test_while_redis_is_away_questions_are_answered_and_writes_refused(
    make_replica: MakeReplica, own_server: RedisProcess
) -> None:
    a, b = make_replica(own_server.url), make_replica(own_server.url)
    a.learn(fact(1))
    b.wait_for(1)
    own_server.kill()
    (refused,) = a.learn(fact(2))
    assert isinstance(refused.error, StoreError)
    for replica in (a, b):
        assert replica.ask("What is the code of vault 1?").text == "Alpha1"
        wait_until(lambda engine=replica.engine: engine.status().store_state == "away")
        assert replica.engine.status().state == "ready"
        wait_until(lambda engine=replica.engine: engine.status().lag_s > 0)
    with pytest.raises(BankBehind):
        a.ask("What is the code of vault 1?", min_version=9, timeout_ms=200)
    own_server.start()
    wait_until(lambda: a.learn(fact(2))[0].error is None, within_s=RECOVERY_S)
    b.wait_for(2)
    wait_until(lambda: b.engine.status().store_state == "open" and b.engine.status().lag_s == 0)
    assert same(a.view(), b.view())


def test_a_redis_that_hangs_does_not_hold_up_questions(
    make_replica: MakeReplica, own_server: RedisProcess
) -> None:
    a = make_replica(own_server.url)
    a.learn(fact(1))
    own_server.pause()
    try:
        wait_until(lambda: a.engine.status().store_state == "away")
        began = time.monotonic()
        (refused,) = a.learn(fact(2))
        assert isinstance(refused.error, StoreError)
        assert a.ask("What is the code of vault 1?").text == "Alpha1"
        assert time.monotonic() - began < 1.0
    finally:
        own_server.resume()
    wait_until(lambda: a.learn(fact(2))[0].error is None, within_s=RECOVERY_S)


def test_stopping_is_quick_although_the_follower_waits(make_replica: MakeReplica) -> None:
    a = make_replica()
    began = time.monotonic()
    a.engine.close()
    assert time.monotonic() - began < 3.0
    assert a.engine.status().state == "stopped"


def test_a_deleted_namespace_is_gone_everywhere_and_nothing_is_called_wrong(
    make_replica: MakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make_replica(), make_replica()
    a.learn(fact(1), fact(2), namespace="n")
    b.wait_for(1, "n")
    assert outcome(b.engine.delete_namespace("n")).num_removed == 2
    a.wait_for(2, "n")
    assert a.view("n").entries == b.view("n").entries == ()
    written = a.learn(fact(3), namespace="n")
    assert written[0].bank_version == 3
    b.wait_for(3, "n")
    assert same(a.view("n"), b.view("n"))
    assert b.ask("What is the code of vault 3?", namespace="n", min_version=3).text == "Alpha3"
    assert "history" not in caplog.text


def test_a_deletion_and_what_came_after_it_are_caught_up_with_at_once(
    make_replica: MakeReplica,
) -> None:
    a = make_replica()
    a.learn(fact(1), fact(2), namespace="n")
    b = make_replica()
    gate = Gate()
    b.model.on_answer = gate
    asked = b.engine.ask(Question(text="Is the engine thread busy?"))
    gate.wait_until_reached()
    outcome(a.engine.delete_namespace("n"))
    a.learn(fact(2, "Beta"), namespace="n")
    outcome(a.engine.delete_namespace("n"))
    outcome(a.engine.create_namespace("n"))
    a.learn(fact(5), fact(1), namespace="n")
    gate.open()
    outcome(asked)
    b.wait_for(6, "n")
    assert same(a.view("n"), b.view("n"))
    assert [entry.document_id for entry in b.view("n").entries] == ["d5", "d1"]


def test_a_removal_by_metadata_reaches_the_other(make_replica: MakeReplica) -> None:
    a, b = make_replica(), make_replica()
    a.learn(*(replace(fact(number), metadata={"old": number < 3}) for number in range(1, 4)))
    b.wait_for(1)
    result = outcome(b.engine.remove_matching({"old": True}))
    assert set(result.removed_ids) == {"d1", "d2"}
    a.wait_for(result.bank_version)
    assert [entry.document_id for entry in a.view().entries] == ["d3"]
    assert same(a.view(), b.view())
