"""A Redis Cluster of three real servers: what differs from one. The rest is in the slow tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Timer

import pytest
from redis.cluster import RedisCluster, key_slot

from mac_core.errors import NamespaceNotEmpty, StoreError
from mac_core.memory.records import DocumentRecord
from mac_core.memory.redis_client import connect
from mac_core.memory.redis_cluster import primaries_of
from mac_core.memory.redis_jobs import RedisJobStore
from mac_core.memory.redis_keys import NamespaceKeys
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.restoring import NamespaceContent
from mac_core.types import Document
from tests.redis_process import RedisClusterProcesses, RedisProcess, free_port
from tests.unit.memory.stores import FINGERPRINT

MakeRecord = Callable[..., DocumentRecord]
NAMES = tuple("abcdefgh")


@pytest.fixture
def store(redis_cluster_url: str) -> Iterator[RedisStore]:
    opened = RedisStore(redis_cluster_url, fingerprint=FINGERPRINT)
    yield opened
    opened.close()


def test_namespaces_lie_on_different_servers_and_are_read_together(
    store: RedisStore, make_record: MakeRecord, redis_cluster: RedisClusterProcesses
) -> None:
    for name in NAMES:
        store.put(name, [make_record("d", namespace=name), make_record("e", namespace=name)])
    with closing(connect(redis_cluster.url)) as client:
        servers = primaries_of(client)
    assert len(servers) == 3
    held = {name: key_slot(NamespaceKeys.of(name).meta.encode()) * 3 // 16384 for name in NAMES}
    assert set(held.values()) == {0, 1, 2}
    assert [(info.namespace, info.num_documents) for info in store.namespaces()] == [
        (name, 2) for name in NAMES
    ]
    expiring = make_record("soon", namespace="a", expires_at=50.0)
    store.put("a", [expiring])
    assert store.expired(60.0) == [("a", "soon")]
    assert [record.id for record in store.scan("c")] == ["d", "e"]


def test_another_server_is_told_of_every_change(
    store: RedisStore, redis_cluster: RedisClusterProcesses, make_record: MakeRecord
) -> None:
    store.put("a", [make_record("d", namespace="a")])
    with closing(RedisStore(redis_cluster.url, fingerprint=FINGERPRINT)) as other:
        assert other.feed.wait({}, timeout_s=5.0) == {"a"}  # announced
        assert other.feed.wait({"a": 1}, timeout_s=0.05) == frozenset()
        later = Timer(0.2, lambda: store.put("a", [make_record("e", namespace="a")]))
        began = time.monotonic()
        later.start()
        assert other.feed.wait({"a": 1, "b": 0}, timeout_s=20.0) == {"a"}
        assert time.monotonic() - began >= 0.2
        later.join()
        head = other.feed.heads()["a"]
        assert head.version == 2
        store.put("b", [make_record("d", namespace="b")])
        assert other.feed.wait({"a": 2}, timeout_s=5.0) == {"b"}
        (fetched,) = other.feed.fetch("b", ["d"])
        assert fetched.decode().id == "d"


def test_jobs_are_claimed_across_servers(redis_cluster_url: str) -> None:
    with (
        closing(RedisJobStore(redis_cluster_url)) as one,
        closing(RedisJobStore(redis_cluster_url)) as other,
    ):
        one.submit("job", "a", [Document(text="text")], max_unfinished=4)
        claimed = other.claim("worker", lease_s=30.0, max_attempts=3)
        assert claimed is not None
        assert [document.text for document in claimed.documents] == ["text"]
        assert one.claim("worker", lease_s=30.0, max_attempts=3) is None


def test_several_namespaces_are_restored(store: RedisStore, make_record: MakeRecord) -> None:
    def contents(*names: str) -> list[NamespaceContent]:
        return [
            NamespaceContent(
                namespace=name,
                version=5,
                num_documents=1,
                records=[make_record(f"of-{name}", namespace=name)],
            )
            for name in names
        ]

    versions = store.restore(contents("a", "b", "c"))
    assert {name: store.version(name) for name in "abc"} == versions
    assert [record.id for record in store.scan("b")] == ["of-b"]
    with pytest.raises(NamespaceNotEmpty):
        store.restore(contents("d", "a"))
    assert [info.namespace for info in store.namespaces()] == ["a", "b", "c"]
    store.restore(contents("a", "d"), is_replacing=True)
    assert [info.namespace for info in store.namespaces()] == ["a", "b", "c", "d"]


def test_the_url_says_that_it_is_a_cluster(redis_cluster: RedisClusterProcesses) -> None:
    plain = redis_cluster.url.partition("?")[0]
    with pytest.raises(StoreError, match="add .cluster=true to its URL"):
        RedisStore(plain, fingerprint=FINGERPRINT)
    with pytest.raises(StoreError, match="no database but 0"):
        RedisStore(redis_cluster.url.replace("/0?", "/1?"), fingerprint=FINGERPRINT)


def test_a_single_server_is_no_cluster(redis_server: RedisProcess) -> None:
    with pytest.raises(StoreError, match="could not be reached"):
        RedisStore(f"{redis_server.url}?cluster=true", fingerprint=FINGERPRINT)


def test_no_cluster_is_a_store_error_that_hides_the_password() -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}/0?cluster=true"
    with pytest.raises(StoreError, match="redis://127.0.0.1:") as caught:
        RedisStore(url, fingerprint=FINGERPRINT)
    assert "secret" not in str(caught.value)


def test_one_server_of_three_that_evicts_is_refused(redis_cluster: RedisClusterProcesses) -> None:
    with redis_cluster.servers[2].client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StoreError, match="CONFIG SET maxmemory-policy noeviction"):
                RedisStore(redis_cluster.url, fingerprint=FINGERPRINT)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1/abc", "'abc' is not the number of a database"),
        ("redis://127.0.0.1/0?coffee=yes", "option that no connection knows.*coffee"),
        ("redis://127.0.0.1/0?cluster=maybe", "not a Redis URL"),
        ("redis://127.0.0.1:port/0", "not a Redis URL"),
        ("unix:///tmp/socket?cluster=true", "a cluster has a host"),
    ],
)
def test_a_url_that_means_nothing_is_refused_before_anything_connects(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        connect(url)


def test_options_of_a_connection_are_taken() -> None:
    with closing(connect("redis://127.0.0.1:1/3?socket_timeout=7")) as client:
        assert not isinstance(client, RedisCluster)
        given = client.connection_pool.connection_kwargs
        assert (given["socket_timeout"], given["db"]) == (7.0, 3)
