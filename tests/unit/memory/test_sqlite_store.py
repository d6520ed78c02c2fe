"""The default store's own: its directory, its file, and what is wrong with either."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mac_core.errors import CorruptRecord, StoreError
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import DATABASE, SqliteStore
from mac_core.types import Fingerprint

MakeRecord = Callable[..., DocumentRecord]


@pytest.fixture
def store(tmp_path: Path, fingerprint: Fingerprint) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store", fingerprint=fingerprint)
    yield opened
    opened.close()


def edit(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        connection.execute(statement, values)


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
