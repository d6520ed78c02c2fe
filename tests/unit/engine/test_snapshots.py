"""Snapshots of a serving engine: the restored bank answers as the one that was copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from mac_core.engine import snapshots
from mac_core.engine.maintenance import (
    create_snapshot,
    export_documents,
    restore_snapshot,
    verify_bank,
    verify_snapshot,
)
from mac_core.engine.serving import Serving
from mac_core.engine.snapshots import Snapshots
from mac_core.errors import (
    CorruptRecord,
    CorruptSnapshot,
    ForeignSnapshot,
    NamespaceNotEmpty,
    NamespaceNotFound,
    Overloaded,
    SnapshotError,
    SnapshotNotFound,
    StoreError,
)
from mac_core.memory.bank import BankView
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.types import Document, Fingerprint
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import FINGERPRINT, WAIT_S, FakeModel, Gate
from tests.unit.engine.test_reindex import _record
from tests.unit.engine.test_replicas import Replica, same, wait_until

OTHER = Fingerprint(amortization_hash="c" * 64, base_lm_hash="d" * 64)
QUESTION = "What is the code of vault 7?"
T = TypeVar("T")


def fill(bench: Bench) -> None:
    for number in range(12):
        bench.learn(
            Document(id=f"d{number}", text=f"The code of vault {number} is Alpha{number}.",
                     title=f"Vault {number}", metadata={"n": number}, published_at=1e9)
        )  # fmt: skip
    bench.learn("The code of vault 7 is Omega.", namespace="tenant")
    outcome(bench.engine.remove(["d3"]))
    outcome(bench.engine.create_namespace("empty"))


def view(bench: Bench, namespace: str) -> BankView:
    serving = bench.engine._thread.serving
    assert serving is not None
    return serving.bank.view(namespace)


def selected(bench: Bench, namespace: str) -> list[tuple[str, float, float]]:
    serving = bench.engine._thread.serving
    assert serving is not None
    found = serving.bank.select(
        serving.bank.view(namespace),
        query=bench.model.encode_questions([QUESTION]).selection_query[0],
        text=QUESTION,
        top_k=0,
        filter={},
        as_of=None,
        now=bench.clock.epoch_s,
    )
    return [(chosen.entry.document_id, chosen.score, chosen.log_prior) for chosen in found]


def test_every_namespace_answers_identically_after_a_restore(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    fill(bench)
    info = outcome(bench.engine.snapshots.create("s"))
    assert [n.namespace for n in info.namespaces] == ["default", "empty", "tenant"]
    fresh = make_bench(directory="other")
    (tmp_path / "bank" / "snapshots").rename(tmp_path / "other" / "snapshots")
    result = outcome(fresh.engine.snapshots.restore("s", namespaces=None, is_replacing=False))
    assert result.num_documents == 12
    for namespace in ("default", "tenant", "empty"):
        old, new = view(bench, namespace), view(fresh, namespace)
        assert new.version == result.bank_versions[namespace] == old.version + 1
        assert torch.equal(old.selection_keys, new.selection_keys)
        for left, right in zip(old.entries, new.entries, strict=True):
            assert left.document_id == right.document_id
            pairs = zip(left.stored.tensors(), right.stored.tensors(), strict=True)
            assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
        assert selected(bench, namespace) == selected(fresh, namespace)
        answers = [each.ask(QUESTION, namespace=namespace) for each in (bench, fresh)]
        assert answers[0].text == answers[1].text
        assert answers[0].sources == answers[1].sources
    assert fresh.ask(QUESTION, namespace="tenant").text == "Omega"


def test_a_restore_over_documents_is_refused_unless_told(bench: Bench) -> None:
    fill(bench)
    outcome(bench.engine.snapshots.create("s"))
    outcome(bench.engine.remove(["d7"]))
    with pytest.raises(NamespaceNotEmpty, match="'default' holds 10 documents"):
        outcome(bench.engine.snapshots.restore("s", namespaces=None, is_replacing=False))
    assert bench.ask(QUESTION).text != "Alpha7"
    outcome(bench.engine.snapshots.restore("s", namespaces=["default"], is_replacing=True))
    answer = bench.ask(QUESTION, min_version=15)
    assert (answer.text, answer.bank_version) == ("Alpha7", 15)


def test_a_restored_document_still_expires(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.learn(Document(id="a", text="The code of vault 7 is Alpha.", ttl_s=10.0))
    outcome(bench.engine.snapshots.create("s"))
    outcome(bench.engine.delete_namespace("default"))
    outcome(bench.engine.snapshots.restore("s", namespaces=None, is_replacing=False))
    assert bench.ask(QUESTION).text == "Alpha"
    bench.clock.turn(11.0)
    assert bench.ask(QUESTION).sources == ()


def test_a_corrupt_snapshot_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    fill(bench)
    outcome(bench.engine.snapshots.create("s"))
    shard = next((tmp_path / "bank" / "snapshots" / "s").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(CorruptSnapshot, match=shard.name):
        outcome(bench.engine.snapshots.verify("s"))
    with pytest.raises(CorruptSnapshot, match=shard.name):
        outcome(bench.engine.snapshots.restore("s", namespaces=None, is_replacing=True))
    assert bench.ask(QUESTION).text == "Alpha7"


def test_another_models_snapshot_is_refused_with_the_way_out(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    fill(bench)
    outcome(bench.engine.snapshots.create("s"))
    values = url_of_directory(tmp_path / "third")
    with pytest.raises(ForeignSnapshot, match="mac bank reindex"):
        restore_snapshot(values, tmp_path / "bank" / "snapshots", "s", fingerprint=OTHER)
    assert not (tmp_path / "third").exists()
    result = restore_snapshot(values, tmp_path / "bank" / "snapshots", "s", fingerprint=None)
    assert result.num_documents == 12
    store = open_store(values, fingerprint=FINGERPRINT)
    assert len(list(store.scan("default"))) == 11
    store.close()


def test_snapshots_are_listed_and_deleted(bench: Bench) -> None:
    bench.learn("One.")
    outcome(bench.engine.snapshots.create("s"))
    assert [info.name for info in outcome(bench.engine.snapshots.list())] == ["s"]
    outcome(bench.engine.snapshots.delete("s"))
    assert outcome(bench.engine.snapshots.list()) == []


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def held(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    """At most three calls; taking a snapshot waits for the gate, and fails then."""

    def read(work: Callable[[Serving], T], /) -> Future[T]:
        gate()
        raise StoreError("away")

    monkeypatch.setattr(snapshots, "MAX_CALLS", 3)
    return Snapshots(tmp_path, read=read, write=read)


def test_a_list_does_not_wait_for_a_snapshot_that_is_being_taken(
    held: Snapshots, gate: Gate
) -> None:
    taking = [held.create(name) for name in "abc"]
    gate.wait_until_reached()
    assert held.list().result(WAIT_S / 4) == []
    assert not any(future.done() for future in taking)


def test_more_calls_than_may_wait_are_refused_until_there_is_room(
    held: Snapshots, gate: Gate
) -> None:
    taking = held.create("a")
    gate.wait_until_reached()
    waiting = [held.verify("b"), held.verify("c")]
    with pytest.raises(Overloaded, match="the snapshots queue holds its limit of 3"):
        held.verify("d")
    gate.open()
    assert type(taking.exception(WAIT_S)) is StoreError
    assert {type(future.exception(WAIT_S)) for future in waiting} == {SnapshotNotFound}
    assert type(held.verify("d").exception(WAIT_S)) is SnapshotNotFound


def test_without_a_server_a_store_is_copied_checked_and_written_out(
    bench: Bench, tmp_path: Path
) -> None:
    """While the server goes on: only writing needs the store for itself."""
    fill(bench)
    url = url_of_directory(tmp_path / "bank")
    info = create_snapshot(url, tmp_path / "snapshots", "s")
    assert verify_snapshot(tmp_path / "snapshots", "s") == info
    found = verify_bank(url)
    assert (found.num_documents, found.corrupt, found.fingerprints) == (12, (), (FINGERPRINT,))
    exported = list(export_documents(url, "default", skip=refuse))
    assert [i.id for i in exported] == [f"d{n}" for n in range(12) if n != 3]
    assert exported[0].text == "The code of vault 0 is Alpha0."
    with pytest.raises(NamespaceNotFound, match="'nowhere'"):
        list(export_documents(url, "nowhere", skip=refuse))
    with pytest.raises(StoreError, match="in use"):
        restore_snapshot(url, tmp_path / "snapshots", "s", fingerprint=FINGERPRINT)


def test_a_restore_reaches_every_replica(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Replica(redis_url), Replica(redis_url)
    try:
        assert all(replica.engine.wait_until_ready(timeout_s=60) for replica in (a, b))
        a.learn(*(Document(id=f"d{n}", text=f"Vault {n} has code Beta{n}.") for n in range(20)))
        create_snapshot(redis_url, tmp_path, "s")
        a.learn(Document(id="d4", text="Vault 4 has code Gamma."), Document(id="z", text="Zeta."))
        monkeypatch.setattr(a.engine.snapshots, "_directory", tmp_path)
        result = outcome(a.engine.snapshots.restore("s", namespaces=None, is_replacing=True))
        version = result.bank_versions["default"]
        wait_until(lambda: b.engine.bank_version("default") == version)
        assert same(a.view(), b.view())
        assert [entry.document_id for entry in b.view().entries] == [f"d{n}" for n in range(20)]
        assert b.learn(Document(text="Another."))[0].bank_version == version + 1
        a.wait_for(version + 1)
        assert same(a.view(), b.view())
    finally:
        a.engine.close(now=True)
        b.engine.close(now=True)


def test_a_snapshot_of_one_kind_of_store_is_restored_into_the_other(
    bench: Bench, redis_url: str, tmp_path: Path
) -> None:
    fill(bench)
    create_snapshot(url_of_directory(tmp_path / "bank"), tmp_path, "s")
    restore_snapshot(redis_url, tmp_path, "s", fingerprint=FINGERPRINT)
    replica = Replica(redis_url)
    try:
        assert replica.engine.wait_until_ready(timeout_s=60)
        assert replica.ask(QUESTION).sources == bench.ask(QUESTION).sources
        create_snapshot(redis_url, tmp_path, "t")
    finally:
        replica.engine.close(now=True)
    target = url_of_directory(tmp_path / "third")
    restore_snapshot(target, tmp_path, "t", fingerprint=FINGERPRINT)
    assert told(target) == told(url_of_directory(tmp_path / "bank"))


def test_a_snapshot_of_a_half_reindexed_bank_is_not_restored(tmp_path: Path) -> None:
    target = url_of_directory(tmp_path / "other")
    with closing(open_store(target, fingerprint=OTHER)) as store:
        store.put("default", [_record(FakeModel(), "x", "The code of vault 99 is Omega.")])
    with closing(open_store(target, fingerprint=FINGERPRINT)) as store:
        store.put("default", [_record(FakeModel(), "y", "The code of vault 98 is Psi.")])
    create_snapshot(target, tmp_path, "mixed")
    with pytest.raises(SnapshotError, match="2 bundles made"):
        restore_snapshot(url_of_directory(tmp_path / "new"), tmp_path, "mixed", fingerprint=None)
    assert not (tmp_path / "new").exists()


def refuse(error: CorruptRecord) -> None:
    raise error


def told(url: str) -> list[str]:
    return [
        json.dumps([i.id, i.text, i.title, dict(i.metadata), i.created_at, i.published_at])
        for i in export_documents(url, "default", skip=refuse)
    ]


def test_a_reindex_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    from mac_core.engine import reindex as module

    model, url = FakeModel(), url_of_directory(tmp_path)
    store = open_store(url, fingerprint=OTHER)
    store.put("default", [_record(model, f"d{n}", f"Text {n}.") for n in range(200)])
    store.close()
    told: list[int] = []

    def die(amount: int) -> None:
        told.append(amount)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.reindex(url, model, advance=die)
    totals: list[int] = []
    assert module.reindex(url, model, begin=totals.append) == 200 - 128
    assert totals == [72]
    assert module.reindex(url, model) == 0
    store = open_store(url, fingerprint=FINGERPRINT)
    assert [record.id for record in store.scan("default")] == [f"d{n}" for n in range(200)]
    store.close()
