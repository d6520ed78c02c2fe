"""Any sequence of writes, on each store, against a dict: the same documents in the same order.

`pytest -m slow tests/unit/memory/test_store_sequences.py`: 2,000 sequences on each store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mac_core.config import SelectionConfig
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store
from tests.redis_cluster_process import RedisClusterProcess
from tests.redis_process import RedisProcess
from tests.unit.memory.stores import OpenStore, redis_at, sqlite_in

MakeRecord = Callable[..., DocumentRecord]
Operation = Literal["put", "delete", "expire", "reopen"]

IDS = st.sampled_from(["a", "b", "c", "d/\u00e9", "e}{"])
NAMESPACES = st.sampled_from(["one", "t{wo}"])
KINDS = ["sqlite", "redis", pytest.param("redis_cluster", marks=pytest.mark.slow)]
PAGE = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One write or one look; `ids` may repeat, `time` is when it happens."""

    operation: Operation
    namespace: str
    ids: tuple[str, ...]
    expires_at: float | None


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["put", "put", "delete", "expire", "reopen"]),
        NAMESPACES,
        st.lists(IDS, max_size=4).map(tuple),
        st.sampled_from([None, None, 3.5, 7.25]),
    ),
    max_size=12,
)


@dataclass
class Model:
    """What a store means, in one dict for each namespace, in order of writing."""

    documents: dict[str, dict[str, DocumentRecord]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def put(self, namespace: str, records: Sequence[DocumentRecord]) -> int:
        if records:
            bank = self.documents.setdefault(namespace, {})
            version = self.versions[namespace] = self.versions.get(namespace, 0) + 1
            created = {name: record.created_at for name, record in bank.items()}
            for record in records:
                bank.pop(record.id, None)
                first = created.get(record.id, record.created_at)
                bank[record.id] = replace(record, version=version, created_at=first)
        return self.versions.get(namespace, 0)

    def delete(self, namespace: str, ids: Sequence[str]) -> tuple[tuple[str, ...], int]:
        bank = self.documents.get(namespace, {})
        removed = tuple(name for name in dict.fromkeys(ids) if bank.pop(name, None) is not None)
        if removed:
            self.versions[namespace] += 1
        return removed, self.versions.get(namespace, 0)

    def expired(self, now: float) -> list[tuple[str, str]]:
        return [
            (namespace, name)
            for namespace, bank in self.documents.items()
            for name, record in bank.items()
            if record.expires_at is not None and record.expires_at <= now
        ]


@contextmanager
def empty_store(kind: str, request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Made empty here, because one test empties it many times."""
    if kind == "redis_cluster":
        cluster: RedisClusterProcess = request.getfixturevalue("redis_cluster")
        cluster.empty()
        yield redis_at(cluster.url)
        return
    if kind == "redis":
        server: RedisProcess = request.getfixturevalue("redis_server")
        with server.client() as client:
            client.flushall()
        yield redis_at(server.url)
        return
    with tempfile.TemporaryDirectory() as directory:
        yield sqlite_in(Path(directory))


def write(store: Store, model: Model, step: Step, time: float, make_record: MakeRecord) -> None:
    if step.operation == "put":
        records = [
            make_record(
                name, f"{name} of {place} at {time}", namespace=step.namespace, created_at=time,
                updated_at=time, expires_at=step.expires_at, metadata={"odd": place % 2 == 1},
            )
            for place, name in enumerate(step.ids)
        ]  # fmt: skip
        assert store.put(step.namespace, records) == model.put(step.namespace, records)
    elif step.operation == "delete":
        expected = model.delete(step.namespace, step.ids)
        assert store.delete(step.namespace, step.ids) == expected
    elif step.operation == "expire":
        due = model.expired(time)
        assert sorted(store.expired(time)) == sorted(due)
        for namespace in {namespace for namespace, _ in due}:
            ids = [name for where, name in due if where == namespace]
            everything = [*ids, *model.documents[namespace]]
            expected = model.delete(namespace, ids)
            assert store.delete(namespace, everything, expired_by=time) == expected


def check(store: Store, model: Model) -> None:
    """Every way to look at the store shows what the model holds."""
    for namespace in ("one", "t{wo}"):
        bank = model.documents.get(namespace, {})
        shown = [record.info(with_text=True) for record in store.scan(namespace)]
        assert shown == [record.info(with_text=True) for record in bank.values()]
        assert store.version(namespace) == model.versions.get(namespace, 0)
        assert listed(store, namespace) == list(bank)
        odd = store.list(namespace, limit=9, filter={"odd": True})
        assert [i.id for i in odd.documents] == [n for n, r in bank.items() if r.metadata["odd"]]
        for name, record in bank.items():
            assert store.info(namespace, name) == record.info(with_text=True)
        stamps = store.hashes(namespace, [*bank, "absent"])
        assert {n: (s.content_hash, s.version, s.created_at) for n, s in stamps.items()} == {
            n: (r.content_hash, r.version, r.created_at) for n, r in bank.items()
        }
    counted = {
        i.namespace: (i.num_documents, i.num_chunks, i.bank_version) for i in store.namespaces()
    }
    assert counted == {
        name: (len(model.documents[name]), len(model.documents[name]), version)
        for name, version in model.versions.items()
    }
    assert all((i.num_bytes > 0) == (i.num_documents > 0) for i in store.namespaces())


def listed(store: Store, namespace: str) -> list[str]:
    names: list[str] = []
    cursor = None
    while True:
        page = store.list(namespace, limit=PAGE, cursor=cursor)
        names += [info.id for info in page.documents]
        if page.next_cursor is None:
            return names
        cursor = page.next_cursor


def run(steps: Sequence[Step], open_store: OpenStore, make_record: MakeRecord) -> None:
    model, store = Model(), open_store()
    try:
        for time, step in enumerate(steps):
            if step.operation == "reopen":
                store.close()
                store = open_store()
            write(store, model, step, float(time), make_record)
            check(store, model)
        for namespace, bank in model.documents.items():
            check_never_ingested(store, namespace, list(bank.values()))
    finally:
        store.close()


def check_never_ingested(store: Store, namespace: str, kept: Sequence[DocumentRecord]) -> None:
    """A bank read from the store is, bit for bit, that of a store which only ever held `kept`."""
    found, expected = view_of(list(store.scan(namespace))), view_of(kept)
    assert torch.equal(found.selection_keys, expected.selection_keys)
    assert torch.equal(found.expires_at, expected.expires_at)
    pairs = [
        (left, right)
        for mine, other in zip(found.entries, expected.entries, strict=True)
        for left, right in zip(mine.stored.tensors(), other.stored.tensors(), strict=True)
    ]
    assert all(left[0] == right[0] and torch.equal(left[1], right[1]) for left, right in pairs)


def view_of(records: Sequence[DocumentRecord]) -> BankView:
    return MemoryBank(SelectionConfig(d_key=8)).apply("n", 1, (), records)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_every_store_is_an_ordered_dict_with_versions(
    kind: str, steps: list[Step], request: pytest.FixtureRequest, make_record: MakeRecord
) -> None:
    with empty_store(kind, request) as open_store:
        run(steps, open_store, make_record)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_two_thousand_sequences(
    kind: str, steps: list[Step], request: pytest.FixtureRequest, make_record: MakeRecord
) -> None:
    with empty_store(kind, request) as open_store:
        run(steps, open_store, make_record)


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_between_others_equals_never_ingested(
    kind: str, request: pytest.FixtureRequest, make_record: MakeRecord
) -> None:
    names = [f"document {number}" for number in range(30)]
    with empty_store(kind, request) as open_store, closing(open_store()) as store:
        for name in names:
            store.put("default", [make_record(name)])
        store.put("default", [make_record(name, "new") for name in names[::3]])
        store.delete("default", names[::2])
        kept = [make_record(name) for name in names[1::2] if name not in names[::3]]
        kept += [make_record(name, "new") for name in names[3::6]]
        check_never_ingested(store, "default", kept)
