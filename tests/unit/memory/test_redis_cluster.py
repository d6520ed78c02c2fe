"""The Redis store on a real cluster of three primaries.

What every store means is run on it too: `pytest -m slow tests/unit/memory -k redis_cluster`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster
from redis.crc import key_slot

from mac_core.errors import NamespaceNotEmpty, StoreError
from mac_core.memory.opening import open_source, open_store
from mac_core.memory.records import DocumentRecord
from mac_core.memory.redis_client import connect
from mac_core.memory.redis_cluster import ask_all, by_slot, servers_of
from mac_core.memory.redis_jobs import RedisJobStore
from mac_core.memory.redis_keys import NamespaceKeys
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.restoring import NamespaceContent
from mac_core.memory.snapshot_reading import Snapshot
from mac_core.memory.snapshot_writing import write_snapshot
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.types import Document
from tests.redis_cluster_process import RedisClusterProcess
from tests.unit.memory.stores import FINGERPRINT

MakeRecord = Callable[..., DocumentRecord]
NAMES = ("news", "support", "catalogue", "legal")  # of all three primaries


@pytest.fixture
def store(redis_cluster_url: str) -> Iterator[RedisStore]:
    opened = RedisStore(redis_cluster_url, fingerprint=FINGERPRINT)
    yield opened
    opened.close()


@pytest.fixture
def client(redis_cluster_url: str) -> Iterator[RedisCluster]:
    found = connect(redis_cluster_url)
    assert isinstance(found, RedisCluster)
    yield found
    found.close()


def slot_of(namespace: str) -> int:
    return key_slot(NamespaceKeys.of(namespace).meta.encode())


def fill(store: RedisStore, make_record: MakeRecord) -> None:
    for name in NAMES:
        store.put(name, [make_record(f"d{n}", namespace=name) for n in range(3)])


def test_the_names_of_these_tests_lie_on_every_primary(
    redis_cluster: RedisClusterProcess,
) -> None:
    ports = {redis_cluster.primary_of(slot_of(name)).port for name in NAMES}
    assert ports == {node.port for node in redis_cluster.primaries}


def test_namespaces_on_every_primary_are_written_listed_and_deleted(
    store: RedisStore, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    store.put("news", [make_record("late", namespace="news", expires_at=5.0)])
    assert [(info.namespace, info.num_documents) for info in store.namespaces()] == [
        ("catalogue", 3), ("legal", 3), ("news", 4), ("support", 3),
    ]  # fmt: skip
    assert store.expired(6.0) == [("news", "late")]
    assert store.drop_namespace("news") == (4, 3)
    assert list(store.scan("news")) == []
    assert [record.id for record in store.scan("support")] == ["d0", "d1", "d2"]
    assert [info.namespace for info in store.namespaces()] == ["catalogue", "legal", "support"]


def news(store: RedisStore, versions: dict[str, int]) -> frozenset[str]:
    """What moved next; each announcement of a known namespace is read by a wait of its own."""
    waits = (store.feed.wait(versions, timeout_s=5.0) for _ in range(10))
    return next(moved for moved in waits if moved)


def test_changes_of_namespaces_on_every_primary_are_followed(
    store: RedisStore, make_record: MakeRecord, redis_cluster_url: str
) -> None:
    fill(store, make_record)
    heads = store.feed.heads()
    assert {name: head.version for name, head in heads.items()} == dict.fromkeys(NAMES, 1)
    versions = dict.fromkeys(NAMES, 0)
    assert store.feed.wait(versions, timeout_s=5.0) == frozenset(NAMES)
    current = dict.fromkeys(NAMES, 1)
    with closing(RedisStore(redis_cluster_url, fingerprint=FINGERPRINT)) as other:
        record = make_record("new", namespace="support")
        writer = threading.Timer(0.1, other.put, ["support", [record]])
        writer.start()
        assert news(store, current) == frozenset({"support"})
        writer.join()
        delta = store.feed.delta("support", heads["support"], dict)
        assert dict(delta.written) == {"new": 2}
        assert [row.id for row in store.feed.fetch("support", ["new"])] == ["new"]
        other.create_namespace("unheard")
        assert news(store, {**current, "support": 2}) == frozenset({"unheard"})


def test_jobs_lie_in_one_slot(redis_cluster_url: str) -> None:
    with closing(RedisJobStore(redis_cluster_url)) as jobs:
        jobs.submit("j", "news", [Document(id="a", text="one")], max_unfinished=5)
        claimed = jobs.claim("worker", lease_s=30.0, max_attempts=3)
        assert claimed is not None
        assert jobs.finish("j", "worker", "done", results=[])
        assert jobs.counts()["done"] == 1
        assert jobs.purge(older_than_s=-1.0) == 1


def test_a_snapshot_of_every_primary_is_restored_to_every_primary(
    store: RedisStore, make_record: MakeRecord, redis_cluster: RedisClusterProcess, tmp_path: Path
) -> None:
    fill(store, make_record)
    with closing(open_source(redis_cluster.url)) as source:
        write_snapshot(source, tmp_path, "s")
    snapshot = Snapshot(tmp_path, "s")
    with closing(SqliteStore(tmp_path / "sqlite", fingerprint=FINGERPRINT)) as sqlite:
        before = sqlite.restore(snapshot.contents(FINGERPRINT))
        assert [record.id for record in sqlite.scan("news")] == ["d0", "d1", "d2"]
    redis_cluster.empty()
    assert store.restore(snapshot.contents(FINGERPRINT)) == before
    for name in NAMES:
        assert [record.id for record in store.scan(name)] == ["d0", "d1", "d2"]
        assert store.put(name, [make_record("d3", namespace=name)]) == before[name] + 1


def content(make_record: MakeRecord, name: str) -> NamespaceContent:
    return content_of(name, [make_record("restored", namespace=name)])


def content_of(name: str, records: Iterable[DocumentRecord]) -> NamespaceContent:
    return NamespaceContent(namespace=name, version=1, num_documents=1, records=records)


def test_a_restore_into_a_namespace_that_is_not_empty_changes_none(
    store: RedisStore, make_record: MakeRecord
) -> None:
    store.put("support", [make_record("a", namespace="support")])
    with pytest.raises(NamespaceNotEmpty, match="support"):
        store.restore([content(make_record, name) for name in NAMES])
    assert [(info.namespace, info.num_documents) for info in store.namespaces()] == [("support", 1)]


def test_a_restore_that_stops_between_slots_says_what_it_restored(
    store: RedisStore, make_record: MakeRecord
) -> None:
    def records() -> Iterator[DocumentRecord]:
        """The namespace staged before this one is written to meanwhile."""
        yield make_record("restored", namespace="support")
        store.put("news", [make_record("meanwhile", namespace="news")])

    contents = [
        content(make_record, "catalogue"),
        content(make_record, "news"),
        content_of("support", records()),
    ]
    with pytest.raises(StoreError, match="'news' was written to .* 'catalogue' restored"):
        store.restore(contents)
    found = {name: [record.id for record in store.scan(name)] for name in NAMES}
    assert found == {
        "catalogue": ["restored"], "news": ["meanwhile"], "support": [], "legal": [],
    }  # fmt: skip


def test_every_primary_is_asked_whether_it_evicts(redis_cluster: RedisClusterProcess) -> None:
    last = redis_cluster.primaries[-1]
    redis_cluster.configure("maxmemory-policy", "allkeys-lru", last)
    try:
        with pytest.raises(StoreError, match=f"primary 127.0.0.1:{last.port}.*noeviction"):
            RedisStore(redis_cluster.url, fingerprint=FINGERPRINT)
    finally:
        redis_cluster.configure("maxmemory-policy", "noeviction", last)


@pytest.mark.parametrize("database", ["/2", "?db=2"])
def test_a_cluster_has_one_database(redis_cluster: RedisClusterProcess, database: str) -> None:
    url = redis_cluster.url.removesuffix("/0") + database
    with pytest.raises(StoreError, match="database 0 alone: it cannot be database 2"):
        open_store(url, fingerprint=FINGERPRINT)


def test_a_socket_reaches_one_node_only(tmp_path: Path) -> None:
    processes = RedisClusterProcess(tmp_path, num_primaries=1, unixsocket=str(tmp_path / "s"))
    try:
        with pytest.raises(StoreError, match=r"expected redis://HOST:PORT/0"):
            open_store(f"unix://{tmp_path / 's'}", fingerprint=FINGERPRINT)
    finally:
        processes.stop()


def test_one_server_is_one_group_and_a_cluster_one_for_each_slot(
    client: RedisCluster, redis_url: str
) -> None:
    one = Redis.from_url(redis_url)
    names = [*NAMES, "news"]
    with closing(one):
        assert by_slot(one, names, lambda name: NamespaceKeys.of(name).meta) == [names]
        assert by_slot(one, [], str) == []
        assert [name for _, name in servers_of(one, "here")] == ["here"]
    groups = by_slot(client, names, lambda name: NamespaceKeys.of(name).meta)
    assert groups == [["news", "news"], ["support"], ["catalogue"], ["legal"]]
    assert len(list(servers_of(client, "here"))) == 3


def test_answers_come_in_the_order_of_the_questions(client: RedisCluster) -> None:
    questions: list[tuple[Any, ...]] = [("SET", f"k{n}", n) for n in range(50)]
    ask_all(client, questions)
    assert ask_all(client, [("GET", f"k{n}") for n in range(50)]) == [
        str(n).encode() for n in range(50)
    ]


def test_a_slot_that_moved_is_followed(
    store: RedisStore, make_record: MakeRecord, redis_cluster: RedisClusterProcess
) -> None:
    """Empty, so that nothing has to be carried: only who serves it changes."""
    store.put("support", [make_record("a", namespace="support")])
    slot = slot_of("moving")
    old = redis_cluster.primary_of(slot)
    new = next(node for node in redis_cluster.primaries if node is not old)
    move(redis_cluster, slot, old, new)
    try:
        assert store.feed.heads().keys() == {"support"}
        assert store.put("moving", [make_record("b", namespace="moving")]) == 1
        assert {name: head.version for name, head in store.feed.heads().items()} == {
            "support": 1, "moving": 1,
        }  # fmt: skip
    finally:
        redis_cluster.empty()
        move(redis_cluster, slot, new, old)
    assert store.feed.wait({"moving": 0}, timeout_s=0.1) == frozenset()


def test_what_is_about_to_move_is_read_where_it_is(
    client: RedisCluster, redis_cluster: RedisClusterProcess
) -> None:
    client.set("{x}:a", b"1")
    slot = key_slot(b"x")
    old = redis_cluster.primary_of(slot)
    new = next(node for node in redis_cluster.primaries if node is not old)
    with old.client() as source, new.client() as target:
        old_id, new_id = (c.execute_command("CLUSTER MYID").decode() for c in (source, target))
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        try:
            source.execute_command("MIGRATE", "127.0.0.1", new.port, "{x}:a", 0, 5000)
            assert ask_all(client, [("GET", "{x}:a"), ("GET", "{x}:b")]) == [b"1", None]
        finally:
            target.flushall()
            for each in (source, target):
                each.execute_command("CLUSTER SETSLOT", slot, "STABLE")


def move(processes: RedisClusterProcess, slot: int, old: Any, new: Any) -> None:
    """Give an empty slot to another primary, and tell everybody."""
    with new.client() as client:
        new_id = client.execute_command("CLUSTER MYID").decode()
    others = [node for node in processes.primaries if node not in (old, new)]
    for node in (new, old, *others):
        with node.client() as client:
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)


@pytest.mark.slow
def test_a_password_reaches_every_primary_and_no_error(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    processes = RedisClusterProcess(tmp_path, requirepass="secret")
    try:
        url = processes.url.replace("redis://", "redis://:secret@")
        with closing(RedisStore(url, fingerprint=FINGERPRINT)) as store:
            fill(store, make_record)
            assert len(store.namespaces()) == len(NAMES)
        with pytest.raises(StoreError) as caught:
            open_store(url.replace("/0", "/2"), fingerprint=FINGERPRINT)
        assert "secret" not in str(caught.value)
    finally:
        processes.stop()
