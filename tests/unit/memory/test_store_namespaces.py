"""Namespaces of a store as a whole: made, deleted, made again, on SQLite and on a real Redis."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import DATABASE
from mac_core.memory.store import Store
from tests.unit.memory.stores import OpenStore, sqlite_in

MakeRecord = Callable[..., DocumentRecord]


def names_of(store: Store) -> list[str]:
    return [info.namespace for info in store.namespaces()]


def test_a_made_namespace_is_empty_and_listed(store: Store) -> None:
    assert store.create_namespace("n") == (True, 1)
    (info,) = store.namespaces()
    assert (info.namespace, info.num_documents, info.bank_version) == ("n", 0, 1)


def test_making_it_again_changes_nothing(store: Store, make_record: MakeRecord) -> None:
    store.put("n", [make_record("a", namespace="n")])
    assert store.create_namespace("n") == (False, 1)
    assert [record.id for record in store.scan("n")] == ["a"]


def test_a_namespace_says_when_it_was_made_and_written(
    store: Store, make_record: MakeRecord
) -> None:
    before = time.time() - 1.0  # the store's clock may round
    store.create_namespace("n")
    (made,) = store.namespaces()
    store.put("n", [make_record("a", namespace="n")])
    (written,) = store.namespaces()
    assert made.created_at is not None
    assert written.updated_at is not None
    assert before < made.created_at <= written.updated_at < time.time() + 1.0
    assert written.created_at == made.created_at


def test_a_deleted_namespace_is_gone_whole(store: Store, make_record: MakeRecord) -> None:
    store.put("n", [make_record(name, namespace="n", expires_at=5.0) for name in "abc"])
    store.put("other", [make_record("a", namespace="other")])
    assert store.drop_namespace("n") == (3, 2)
    assert names_of(store) == ["other"]
    assert list(store.scan("n")) == []
    assert store.get("n", "a") is None
    assert store.hashes("n", ["a", "b", "c"]) == {}
    assert store.expired(1e12) == []
    assert [record.id for record in store.scan("other")] == ["a"]


def test_what_is_not_there_cannot_be_deleted(store: Store, make_record: MakeRecord) -> None:
    assert store.drop_namespace("n") == (None, 0)
    store.put("n", [make_record("a", namespace="n")])
    store.drop_namespace("n")
    assert store.drop_namespace("n") == (None, 2)


def test_a_name_used_again_goes_on_behind_its_versions(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    with closing(open_store()) as store:
        store.put("n", [make_record("a", namespace="n")])
        store.drop_namespace("n")
    with closing(open_store()) as store:
        assert store.version("n") == 2
        assert store.put("n", [make_record("b", namespace="n")]) == 3
        assert names_of(store) == ["n"]
        (info,) = store.namespaces()
        assert (info.num_documents, info.num_chunks) == (1, 1)
        assert store.drop_namespace("n") == (1, 4)
        assert store.create_namespace("n") == (True, 5)


def test_a_deleted_namespace_stays_deleted_when_reopened(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    with closing(open_store()) as store:
        store.put("n", [make_record("a", namespace="n")])
        store.drop_namespace("n")
    with closing(open_store()) as store:
        assert names_of(store) == []


def test_a_database_from_before_namespaces_had_times_gets_them(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    open_store = sqlite_in(tmp_path)
    with closing(open_store()) as store:
        store.put("n", [make_record("a", namespace="n", created_at=7.0, updated_at=9.0)])
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        connection.executescript(
            "DROP TRIGGER namespace_is_made; DROP TRIGGER namespace_is_written; "
            "DROP TABLE namespace_life"
        )
    with closing(open_store()) as store:
        (info,) = store.namespaces()
        assert (info.created_at, info.updated_at, info.bank_version) == (7.0, 9.0, 1)
        assert store.drop_namespace("n") == (1, 2)
