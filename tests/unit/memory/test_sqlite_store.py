"""The default store keeps what it acknowledged, in order, and says what is wrong."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_core.errors import CorruptRecord, ForeignRecord, InvalidInput, StoreError
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import DATABASE, SqliteStore
from mac_core.memory.store import Store
from mac_core.types import Fingerprint, MetadataValue

MakeRecord = Callable[..., DocumentRecord]
ODD_IDS = ["a/b//c", "\u00e9\u4e2d\U0001f600", "..", "x" * 500, "quote'\";--", "%2F?#", "nul\x00!"]


def ids_of(store: SqliteStore, namespace: str = "default") -> list[str]:
    return [record.id for record in store.scan(namespace)]


def edit(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        connection.execute(statement, values)


def test_it_is_a_store(store: SqliteStore) -> None:
    checked: Store = store
    checked.check()


def test_every_write_of_a_namespace_gets_its_next_version(
    store: SqliteStore, make_record: MakeRecord
) -> None:
    assert store.version("default") == 0
    assert store.put("default", [make_record("a"), make_record("b")]) == 1
    assert store.put("default", [make_record("c")]) == 2
    assert store.put("other", [make_record("a", namespace="other")]) == 1
    assert store.version("default") == 2
    assert [record.version for record in store.scan("default")] == [1, 1, 2]


def test_putting_nothing_writes_nothing(store: SqliteStore) -> None:
    assert store.put("default", []) == 0
    assert store.namespaces() == []


def test_an_update_keeps_created_at_and_moves_to_the_end(
    store: SqliteStore, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a", created_at=1.0), make_record("b")])
    store.put("default", [make_record("a", "new text", created_at=9.0, updated_at=9.0)])
    updated = store.get("default", "a")
    assert updated is not None
    assert (updated.text, updated.created_at, updated.updated_at) == ("new text", 1.0, 9.0)
    assert ids_of(store) == ["b", "a"]


def test_the_later_of_two_records_with_one_id_stays(
    store: SqliteStore, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a", "one"), make_record("b"), make_record("a", "two")])
    assert [(record.id, record.text) for record in store.scan("default")] == [
        ("b", "the text of b"), ("a", "two"),
    ]  # fmt: skip


def test_delete_says_what_was_there(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a"), make_record("b")])
    assert store.delete("default", ["b", "x", "b"]) == (("b",), 2)
    assert store.delete("default", ["b"]) == ((), 2)
    assert store.delete("nowhere", ["a"]) == ((), 0)
    assert ids_of(store) == ["a"]


def test_namespaces_do_not_share_ids(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("one", [make_record("a", "text one", namespace="one")])
    store.put("two", [make_record("a", "text two", namespace="two")])
    store.delete("one", ["a"])
    assert store.get("one", "a") is None
    kept = store.get("two", "a")
    assert kept is not None
    assert kept.text == "text two"
    assert store.hashes("one", ["a"]) == {}


def test_a_record_of_another_namespace_is_a_mistake(
    store: SqliteStore, make_record: MakeRecord
) -> None:
    with pytest.raises(ValueError, match="'default'"):
        store.put("default", [make_record("a", namespace="other")])


@pytest.mark.parametrize("document_id", ODD_IDS)
def test_odd_ids_are_ids(store: SqliteStore, make_record: MakeRecord, document_id: str) -> None:
    store.put("default", [make_record(document_id), make_record("plain")])
    found = store.info("default", document_id)
    assert found is not None
    assert (found.id, found.text) == (document_id, f"the text of {document_id}")
    assert store.delete("default", [document_id]) == ((document_id,), 2)
    assert ids_of(store) == ["plain"]


@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_what_is_not_unicode_is_refused_and_nothing_is_written(
    store: SqliteStore, make_record: MakeRecord, field: str
) -> None:
    bad = replace(make_record("bad"), **{field: "\ud800"})
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.put("default", [make_record("good"), bad])
    assert (ids_of(store), store.version("default")) == ([], 0)


def test_hashes_of_many_ids(store: SqliteStore, make_record: MakeRecord) -> None:
    record = make_record("a", parts=["one ", "two"], text="one two", created_at=5.0)
    store.put("default", [record])
    stamps = store.hashes("default", ["a", *map(str, range(1200))])
    assert stamps == {"a": (record.content_hash, 2, 6, 5.0)}


def test_reopened_it_holds_the_same_in_the_same_order(
    tmp_path: Path, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    store = SqliteStore(tmp_path, fingerprint=fingerprint)
    store.put("default", [make_record(name, title=name, metadata={"n": name}) for name in "abcd"])
    store.put("default", [make_record("b", "changed")])
    store.delete("default", ["c"])
    before = [record.info(with_text=True) for record in store.scan("default")]
    store.close()
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as reopened:
        assert [record.info(with_text=True) for record in reopened.scan("default")] == before
        assert [info.id for info in before] == ["a", "d", "b"]
        assert reopened.version("default") == 3


def test_a_scan_survives_writes_in_between(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("default", [make_record(f"{number:02}") for number in range(40)])
    seen = []
    for record in store.scan("default"):
        store.delete("default", [record.id])
        seen.append(record.id)
    assert seen == [f"{number:02}" for number in range(40)]


def test_pages_follow_the_order_of_writing(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("default", [make_record(name) for name in "edcba"])
    first = store.list("default", limit=2)
    second = store.list("default", limit=2, cursor=first.next_cursor)
    third = store.list("default", limit=2, cursor=second.next_cursor)
    pages = [[info.id for info in page.documents] for page in (first, second, third)]
    assert pages == [["e", "d"], ["c", "b"], ["a"]]
    assert third.next_cursor is None
    assert first.documents[0].text is None


def test_a_full_last_page_has_no_cursor(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a"), make_record("b")])
    assert store.list("default", limit=2).next_cursor is None


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "\u00e9", "cA==", "cC0x", "cDE=\n", "a" * 10_000, "cDk5OTk5OTk5OTk5OTk5OTk5OTk5"],
)
def test_a_cursor_that_no_page_gave_is_refused(store: SqliteStore, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        store.list("default", limit=2, cursor=cursor)


def test_a_limit_below_one_is_refused(store: SqliteStore) -> None:
    with pytest.raises(InvalidInput, match="limit=0"):
        store.list("default", limit=0)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"kind": "news"}, ["a", "c"]), ({"n": 1}, ["a"]), ({"n": True}, ["b"]),
        ({"quote\"'.$": 2**70}, ["c"]), ({"none": None}, ["b"]), ({"absent": None}, []),
        ({"kind": "news", "n": 1}, ["a"]),
    ],
)  # fmt: skip
def test_the_list_is_filtered_by_metadata(
    store: SqliteStore, make_record: MakeRecord,
    wanted: dict[str, MetadataValue], expected: list[str],
) -> None:  # fmt: skip
    metadata: dict[str, dict[str, Any]] = {
        "a": {"kind": "news", "n": 1}, "b": {"n": True, "none": None},
        "c": {"kind": "news", "quote\"'.$": 2**70},
    }  # fmt: skip
    store.put("default", [make_record(name, metadata=values) for name, values in metadata.items()])
    page = store.list("default", limit=10, filter=wanted)
    assert [info.id for info in page.documents] == expected


def test_namespaces_are_counted(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("b", [make_record("a", "one two", parts=["one ", "two"], namespace="b")])
    store.put("a", [make_record("a", namespace="a")])
    store.delete("a", ["a"])
    emptied, filled = store.namespaces()
    assert (emptied.namespace, emptied.num_documents, emptied.num_bytes) == ("a", 0, 0)
    assert emptied.bank_version == 2
    assert (filled.namespace, filled.num_documents, filled.num_chunks) == ("b", 1, 2)
    assert filled.num_bytes > 500


def test_expired_documents_are_named(store: SqliteStore, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a", expires_at=5.0), make_record("b", expires_at=6.0)])
    store.put("other", [make_record("c", namespace="other", expires_at=4.0)])
    store.put("default", [make_record("never")])
    assert store.expired(5.0) == [("default", "a"), ("other", "c")]


def test_one_owner_for_a_directory(
    tmp_path: Path, store: SqliteStore, fingerprint: Fingerprint
) -> None:
    with pytest.raises(StoreError, match="in use by another store"):
        SqliteStore(tmp_path / "store", fingerprint=fingerprint)
    store.check()


def test_one_owner_among_processes(tmp_path: Path, store: SqliteStore) -> None:
    program = (
        "import sys; from pathlib import Path; from mac_core.memory.directory_lock import *\n"
        "DirectoryLock(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "in use by another store" in ended.stderr


def test_a_closed_directory_can_be_opened_again(tmp_path: Path, fingerprint: Fingerprint) -> None:
    store = SqliteStore(tmp_path, fingerprint=fingerprint)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.check()
    SqliteStore(tmp_path, fingerprint=fingerprint).close()


def test_a_newer_schema_is_refused(tmp_path: Path, fingerprint: Fingerprint) -> None:
    SqliteStore(tmp_path, fingerprint=fingerprint).close()
    edit(tmp_path, "UPDATE meta SET value = '2'")
    with pytest.raises(StoreError, match="newer version .schema 2"):
        SqliteStore(tmp_path, fingerprint=fingerprint)
    edit(tmp_path, "UPDATE meta SET value = '1'")
    SqliteStore(tmp_path, fingerprint=fingerprint).close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, fingerprint: Fingerprint) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, certainly not" * 50)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(tmp_path, fingerprint=fingerprint)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path, fingerprint: Fingerprint) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use"):
        SqliteStore(tmp_path / "file", fingerprint=fingerprint)


def test_a_corrupt_record_is_named_and_its_neighbours_are_read(
    tmp_path: Path, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as store:
        store.put("default", [make_record("good"), make_record("bad")])
        edit(tmp_path, "UPDATE documents SET payload = x'00' WHERE id = 'bad'")
        assert store.get("default", "good") is not None
        with pytest.raises(CorruptRecord, match="document 'bad' of namespace 'default'"):
            store.get("default", "bad")


def test_foreign_records_are_refused_but_their_text_can_be_read(
    tmp_path: Path, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as store:
        store.put("default", [make_record("a", "some text")])
    other = replace(fingerprint, base_lm_hash="f" * 64)
    with closing(SqliteStore(tmp_path, fingerprint=other)) as store:
        with pytest.raises(ForeignRecord, match="mac bank reindex"):
            next(store.scan("default"))
        found = store.info("default", "a")
    assert found is not None
    assert found.text == "some text"


def test_without_a_fingerprint_it_reads_anything_and_writes_nothing(
    tmp_path: Path, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as store:
        store.put("default", [make_record("a")])
    with closing(SqliteStore(tmp_path, fingerprint=None)) as store:
        assert ids_of(store) == ["a"]
        with pytest.raises(StoreError, match="read-only"):
            store.put("default", [make_record("b")])


def test_check_sees_that_the_file_was_taken_away(tmp_path: Path, store: SqliteStore) -> None:
    (tmp_path / "store" / DATABASE).unlink()
    with pytest.raises(StoreError, match=DATABASE):
        store.check()


def test_a_failing_write_changes_nothing(
    tmp_path: Path, store: SqliteStore, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a")])
    edit(
        tmp_path / "store",
        "CREATE TRIGGER full BEFORE INSERT ON documents WHEN NEW.id = 'c' "
        "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    )
    with pytest.raises(StoreError, match="disk is full"):
        store.put("default", [make_record("a", "changed"), make_record("b"), make_record("c")])
    assert [(r.id, r.text, r.version) for r in store.scan("default")] == [("a", "the text of a", 1)]
    assert store.put("default", [make_record("d")]) == 2


NAMES = st.sampled_from(["a", "b", "c", "d/\u00e9"])
WRITES = st.tuples(st.sampled_from(["put", "delete"]), st.lists(NAMES, max_size=4))


@settings(max_examples=25, deadline=None)
@given(writes=st.lists(WRITES, max_size=8))
def test_the_store_is_an_ordered_dict_that_survives_reopening(
    writes: list[tuple[str, list[str]]], make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    model: dict[str, tuple[str, int]] = {}
    version = 0
    with tempfile.TemporaryDirectory() as directory:
        for step, (operation, names) in enumerate(writes):
            with closing(SqliteStore(Path(directory), fingerprint=fingerprint)) as store:
                changed = [name for name in names if operation == "put" or name in model]
                version += bool(changed)
                for name in changed:
                    model.pop(name, None)
                if operation == "put":
                    for name in names:
                        model.pop(name, None)
                        model[name] = (f"step {step}", version)
                    records = [make_record(name, f"step {step}") for name in names]
                    assert store.put("default", records) == version
                else:
                    removed, reached = store.delete("default", names)
                    assert (removed, reached) == (tuple(dict.fromkeys(changed)), version)
        with closing(SqliteStore(Path(directory), fingerprint=fingerprint)) as store:
            found = [(r.id, (r.text, r.version)) for r in store.scan("default")]
            assert found == list(model.items())
            assert store.version("default") == version
