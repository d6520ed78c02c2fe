"""The Redis store's own: what it asks of its server, how it retries, where its keys lie."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.cluster import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from mac_core.errors import CorruptRecord, StoreError
from mac_core.memory.records import DocumentRecord
from mac_core.memory.redis_client import Availability, check_server
from mac_core.memory.redis_cluster import next_entries
from mac_core.memory.redis_keys import SCHEMA, NamespaceKeys
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.redis_url import public_name
from mac_core.memory.shared import SharedStore
from tests.redis_process import RedisProcess, free_port
from tests.unit.memory.stores import FINGERPRINT

MakeRecord = Callable[..., DocumentRecord]


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    opened = RedisStore(redis_url, fingerprint=FINGERPRINT)
    yield opened
    opened.close()


@pytest.fixture
def client(redis_server: RedisProcess) -> Iterator[Redis]:
    with redis_server.client() as client:
        yield client


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that a test may kill."""
    process = RedisProcess(tmp_path / "redis")
    yield process
    process.kill()


def test_it_is_a_shared_store(store: RedisStore) -> None:
    checked: SharedStore = store
    assert not checked.is_away


def test_a_server_that_evicts_documents_is_refused_with_the_way_out(
    client: Redis, redis_url: str
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreError, match="CONFIG SET maxmemory-policy noeviction"):
            RedisStore(redis_url, fingerprint=FINGERPRINT)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


class Told:
    """A server that tells what the test wants it to."""

    def __init__(self, *, policy: str = "noeviction", aof: int = 1, save: str = "") -> None:
        self._info = {"memory": {"maxmemory_policy": policy}, "persistence": {"aof_enabled": aof}}
        self._save = save

    def info(self, section: str) -> Any:
        return self._info[section]

    def config_get(self, pattern: str) -> Any:
        return {pattern: self._save}


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Told(), []),
        (Told(policy="volatile-lru"), ["maxmemory-policy volatile-lru"]),
        (Told(aof=0), ["no persistence: a restart loses every document"]),
        (Told(aof=0, save="60 1"), ["a crash loses what came after the last"]),
    ],
)
def test_a_server_that_may_lose_documents_is_warned_of(
    server: Told, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_server(server, "redis://here")
    assert len(caplog.messages) == len(expected)
    assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))


def test_a_newer_schema_is_refused(client: Redis, redis_url: str) -> None:
    client.set(SCHEMA, 2)
    with pytest.raises(StoreError, match="newer version .schema 2"):
        RedisStore(redis_url, fingerprint=FINGERPRINT)


def test_no_server_is_a_store_error_that_hides_the_password() -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}/0"
    with pytest.raises(StoreError, match="redis://127.0.0.1:") as caught:
        RedisStore(url, fingerprint=FINGERPRINT)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://:secret@x/0", "redis://:secret@host:port/0", "redis://:secret/x@host/0"]
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        RedisStore(url, fingerprint=FINGERPRINT)
    assert "secret" not in str(caught.value)


def test_a_socket_is_a_server(tmp_path: Path, make_record: MakeRecord) -> None:
    process = RedisProcess(tmp_path / "redis", unixsocket=str(tmp_path / "s"))
    try:
        url = f"unix://{tmp_path / 's'}?db=1"
        with closing(RedisStore(url, fingerprint=FINGERPRINT)) as store:
            assert store.put("default", [make_record("a")]) == 1
    finally:
        process.stop()


def test_a_public_name_has_no_user_password_or_options() -> None:
    assert public_name("rediss://u:p@h:1/2?password=x") == "rediss://h:1/2"
    assert public_name("redis://:p/as#s@h:1/2") == "redis://h:1/2"
    assert public_name("redis://:p/a?s#s@h:1/2") == "redis://..."
    assert public_name("redis://h:1/2?password=se@cret") == "redis://..."
    assert public_name("unix:///run/redis.sock?password=x") == "unix:///run/redis.sock"


@pytest.mark.parametrize("namespace", ["default", "{}", "a}b", "{mac}", "\u4e2d"])
def test_one_slot_holds_a_namespace(namespace: str) -> None:
    keys = NamespaceKeys.of(namespace)
    names = [*(getattr(keys, name) for name in keys.__slots__), keys.writer("w")]
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert len(set(names)) == len(names)


def test_namespaces_have_keys_of_their_own() -> None:
    names = ["a", "A", "a}", "%7D", "}", "a:meta", "\u4e2d", "a/b"]
    assert len({NamespaceKeys.of(name).meta for name in names}) == len(names)


def test_a_connection_closed_by_the_server_is_replaced(
    store: RedisStore, client: Redis, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a")])
    client.client_kill_filter(_type="normal", skipme=True)
    assert store.put("default", [make_record("b")]) == 2
    client.client_kill_filter(_type="normal", skipme=True)
    assert store.version("default") == 2


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_a_write_whose_reply_was_lost_is_sent_again_and_written_once(
    store: RedisStore, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    store.put("default", [make_record("a"), make_record("b")])
    lost = []
    parse = Redis.parse_response

    def lose_one(self: Redis, connection: Any, command: str, **options: Any) -> Any:
        reply = parse(self, connection, command, **options)
        if command == "EVALSHA" and isinstance(reply, list) and not lost:
            lost.append(reply)
            raise RedisConnectionError("the reply was lost")
        return reply

    monkeypatch.setattr(Redis, "parse_response", lose_one)
    if operation == "put":
        assert store.put("default", [make_record("c")]) == 2
    else:
        assert store.delete("default", ["a", "x"]) == (("a",), 2)
    assert len(lost) == 1
    assert store.version("default") == 2
    assert store.last_write.head.version == 2


def test_scripts_are_loaded_again_after_they_were_flushed(
    store: RedisStore, client: Redis, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a")])
    client.script_flush()
    assert store.delete("default", ["a"]) == (("a",), 2)


def test_a_write_that_memory_refuses_changes_nothing(
    store: RedisStore, client: Redis, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a")])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreError, match="maxmemory"):
            store.put("default", [make_record("a", "changed"), make_record("b")])
        with pytest.raises(StoreError, match="maxmemory"):
            store.check()
        assert [(r.id, r.text, r.version) for r in store.scan("default")] == [
            ("a", "the text of a", 1)
        ]
    finally:
        client.config_set("maxmemory", 0)
    assert store.put("default", [make_record("b")]) == 2


def test_a_corrupt_record_is_named_and_its_neighbours_are_read(
    store: RedisStore, client: Redis, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("good"), make_record("bad"), make_record("worse")])
    keys = NamespaceKeys.of("default")
    client.hset(keys.payloads, "bad", b"\0")
    client.hset(keys.headers, "worse", b"\xff{")
    assert store.get("default", "good") is not None
    for name in ("bad", "worse"):
        with pytest.raises(CorruptRecord, match=f"document '{name}' of namespace 'default'"):
            store.get("default", name)


def test_the_stream_is_trimmed(redis_url: str, client: Redis, make_record: MakeRecord) -> None:
    with closing(RedisStore(redis_url, fingerprint=FINGERPRINT, max_changes=5)) as store:
        record = make_record("a")
        for _ in range(40):
            store.put("default", [record])
    assert 5 <= client.xlen(NamespaceKeys.of("default").changes) <= 20  # by nodes of 10


def test_while_the_server_is_away_calls_fail_at_once(
    own_server: RedisProcess, make_record: MakeRecord
) -> None:
    with closing(RedisStore(own_server.url, fingerprint=FINGERPRINT)) as store:
        store.put("default", [make_record("a")])
        own_server.kill()
        store.leave_probing_to_feed(True)
        with pytest.raises(StoreError):
            store.put("default", [make_record("b")])
        assert store.is_away
        own_server.start()
        with pytest.raises(StoreError, match="does not answer"):
            store.put("default", [make_record("b")])
        assert store.feed.heads()["default"].version == 1
        assert not store.is_away
        assert store.put("default", [make_record("b")]) == 2


def test_without_a_follower_one_call_in_a_second_tries_again() -> None:
    now = 100.0
    availability = Availability(clock=lambda: now)
    availability.note(is_away=True)
    assert not availability.may_try()
    now = 101.5
    assert availability.may_try()
    assert not availability.may_try()
    availability.note(is_away=False)
    assert availability.may_try()


@pytest.mark.parametrize(
    ("socket_timeout_s", "timeout_s", "block_ms"),
    [("0.4", 0.5, 200), ("1", 0.5, 500), ("3", 0.5, 500), ("3", 0.02, 20), ("0.001", 0.5, 1)],
)
def test_waiting_for_news_takes_half_of_a_commands_timeout_at_most(
    monkeypatch: pytest.MonkeyPatch, socket_timeout_s: str, timeout_s: float, block_ms: int
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Redis, "xread", lambda _, streams, **options: asked.append(options))
    url = f"redis://127.0.0.1:1/0?socket_timeout={socket_timeout_s}"
    with Redis.from_url(url, socket_timeout=3.0) as client:
        assert next_entries(client, {"key": "0-0"}, timeout_s=timeout_s) == {}
    assert asked == [{"count": 1, "block": block_ms}]


def test_a_server_to_which_nothing_is_written_is_not_away(redis_url: str) -> None:
    with closing(RedisStore(f"{redis_url}?socket_timeout=2", fingerprint=FINGERPRINT)) as store:
        assert store.feed.wait({"default": 0}, timeout_s=5.0) == frozenset()
        assert not store.is_away


def test_an_acknowledged_write_survives_sigkill_of_the_server(
    own_server: RedisProcess, make_record: MakeRecord
) -> None:
    with closing(RedisStore(own_server.url, fingerprint=FINGERPRINT)) as store:
        versions = [store.put("default", [make_record(f"{n}")]) for n in range(50)]
        own_server.kill()
        own_server.start()
        store.feed.heads()
        assert store.version("default") == versions[-1] == 50
        assert [record.id for record in store.scan("default")] == [f"{n}" for n in range(50)]


def test_no_key_is_ever_listed() -> None:
    package = Path(__file__).parents[3] / "mac_core"
    found = subprocess.run(
        ["grep", "-rnE", r"\.(keys|scan_iter)\(['\"]|'KEYS'|scan_iter", str(package)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == ""
