"""The default store: one directory with one SQLite database in WAL mode, owned by one process.

Durable before return: `synchronous=FULL` syncs the log at every commit.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mac_core.errors import CorruptRecord, InvalidInput, StoreError
from mac_core.memory import sqlite_namespaces, sqlite_restoring
from mac_core.memory.cursors import decode_cursor, encode_cursor
from mac_core.memory.directory_lock import DirectoryLock
from mac_core.memory.record_format import encode_record
from mac_core.memory.records import DocumentRecord, canonical_json, last_of_each_id
from mac_core.memory.restoring import NamespaceContent, version_after
from mac_core.memory.sources import SqliteSource
from mac_core.memory.sqlite_rows import (
    INFO,
    INSERT,
    PINNED,
    RECORD,
    in_parts,
    info_of,
    record_of,
    row_of,
)
from mac_core.memory.sqlite_schema import open_database
from mac_core.memory.sqlite_writing import transaction, translating
from mac_core.memory.store import FILTERED_AT_ONCE, DocumentStamp
from mac_core.types import DocumentInfo, DocumentPage, Fingerprint, MetadataValue, NamespaceInfo

READ_ONLY = "the store was opened without a fingerprint: it is read-only"
DATABASE = "bank.sqlite3"
SCAN_ROWS = 16  # documents in memory at once while scanning; each is about 0.1 MB a chunk


class SqliteStore:
    """A `Store` in a directory. One thread at a time; one process per directory."""

    def __init__(self, directory: Path, *, fingerprint: Fingerprint | None) -> None:
        """Open the store, creating it when the directory has none.

        Args:
            fingerprint: the networks in use; only their records are written and read. None: read
                any, write none.

        Raises:
            StoreError: in use by another process, written by a newer version, or unusable.
        """
        self._path = directory / DATABASE
        self._fingerprint = fingerprint
        self._lock = DirectoryLock(directory)
        try:
            with self._translating("be opened"):
                self._connection = open_database(self._path)
                self._inode = self._path.stat().st_ino
        except BaseException:
            self._lock.release()
            raise

    @property
    def kind(self) -> str:
        return "sqlite"

    def put(self, namespace: str, records: Sequence[DocumentRecord]) -> int:
        if self._fingerprint is None:
            raise StoreError(READ_ONLY)
        if any(record.namespace != namespace for record in records):
            raise ValueError(f"a record of another namespace was put into {namespace!r}")
        latest = last_of_each_id(records)
        if not latest:
            return self.version(namespace)
        encoded = [(record, *encode_record(record, self._fingerprint)) for record in latest]
        ids = [record.id for record in latest]
        with self._writing():
            version = self._next_version(namespace)
            replaced = self.hashes(namespace, ids)
            self._remove(namespace, ids)
            for record, header, payload in encoded:
                old = replaced.get(record.id)
                created_at = record.created_at if old is None else old.created_at
                self._connection.execute(
                    INSERT, row_of(record, header, payload, version=version, created_at=created_at)
                )
        return version

    def delete(
        self, namespace: str, ids: Sequence[str], *, expired_by: float | None = None
    ) -> tuple[tuple[str, ...], int]:
        with self._writing():
            found: Container[str] = self.hashes(namespace, ids)
            if expired_by is not None:
                found = {name for where, name in self.expired(expired_by) if where == namespace}
            removed = tuple(name for name in dict.fromkeys(ids) if name in found)
            if not removed:
                return (), self._version(namespace)
            self._remove(namespace, removed)
            return removed, self._next_version(namespace)

    def get(self, namespace: str, document_id: str) -> DocumentRecord | None:
        return self._read(namespace, document_id, self._fingerprint)

    def info(self, namespace: str, document_id: str) -> DocumentInfo | None:
        record = self._read(namespace, document_id, None)
        return None if record is None else record.info(with_text=True)

    def hashes(self, namespace: str, ids: Sequence[str]) -> dict[str, DocumentStamp]:
        found: dict[str, DocumentStamp] = {}
        for part, marks in in_parts(ids):
            rows = self._query(
                "SELECT id, content_hash, num_chunks, num_tokens, created_at, version "
                f"FROM documents WHERE namespace = ? AND id IN ({marks})",
                (namespace, *part),
            )
            found.update((row[0], DocumentStamp(*row[1:])) for row in rows)
        return found

    def scan(
        self, namespace: str, *, skip: Callable[[CorruptRecord], None] | None = None
    ) -> Iterator[DocumentRecord]:
        position = 0
        # Page by page, so that no statement stays open while the caller writes.
        while rows := self._query(
            f"SELECT {RECORD} FROM documents WHERE namespace = ? AND position > ? "
            "ORDER BY position LIMIT ?",
            (namespace, position, SCAN_ROWS),
        ):
            for row in rows:
                try:
                    yield record_of(namespace, row, self._fingerprint)
                except CorruptRecord as error:
                    if skip is None:
                        raise
                    skip(error)
            position = rows[-1][0]

    def list(
        self,
        namespace: str,
        *,
        limit: int,
        cursor: str | None = None,
        filter: Mapping[str, MetadataValue] | None = None,
    ) -> DocumentPage:
        if limit < 1:
            raise InvalidInput(f"limit={limit} is below 1")
        after = 0 if cursor is None else decode_cursor(cursor)
        last = self._last_looked_at(namespace, after) if filter else None
        wanted: dict[str, str | int] = {"namespace = ?": namespace, "position > ?": after}
        if last is not None:
            wanted["position <= ?"] = last
        if filter:
            wanted["metadata_matches(metadata, ?)"] = canonical_json(filter)
        rows = self._query(
            f"SELECT {INFO}, {PINNED} FROM documents "
            f"WHERE {' AND '.join(wanted)} ORDER BY position LIMIT ?",
            (*wanted.values(), limit + 1),
        )
        page = rows[:limit]
        goes_on_after = page[-1][0] if len(rows) > limit else last
        return DocumentPage(
            documents=tuple(info_of(namespace, row) for row in page),
            next_cursor=None if goes_on_after is None else encode_cursor(goes_on_after),
        )

    def _last_looked_at(self, namespace: str, after: int) -> int | None:
        """Position of the last document that a filter looks at for one page; None: of all."""
        found = self._query(
            "SELECT position FROM documents WHERE namespace = ? AND position > ? "
            "ORDER BY position LIMIT 2 OFFSET ?",
            (namespace, after, FILTERED_AT_ONCE - 1),
        )
        return int(found[0][0]) if len(found) > 1 else None

    def create_namespace(self, namespace: str) -> tuple[bool, int]:
        with self._writing():
            if sqlite_namespaces.is_there(self._connection, namespace):
                return False, self._version(namespace)
            return True, self._next_version(namespace)

    def drop_namespace(self, namespace: str) -> tuple[int | None, int]:
        with self._writing():
            if not sqlite_namespaces.is_there(self._connection, namespace):
                return None, self._version(namespace)
            gone = self._connection.execute(
                "DELETE FROM documents WHERE namespace = ?", (namespace,)
            )
            version = self._next_version(namespace)
            sqlite_namespaces.note_deleted(self._connection, namespace)
            return gone.rowcount, version

    def restore(
        self, contents: Sequence[NamespaceContent], *, is_replacing: bool = False
    ) -> dict[str, int]:
        if self._fingerprint is None:
            raise StoreError(READ_ONLY)
        versions: dict[str, int] = {}
        with self._writing():
            for content in contents:
                namespace = content.namespace
                before = sqlite_restoring.clear(
                    self._connection, namespace, is_replacing=is_replacing
                )
                version = versions[namespace] = version_after(before, content.version)
                sqlite_restoring.set_version(self._connection, namespace, version)
                for record in content.records:
                    header, payload = encode_record(record, self._fingerprint)
                    created_at = record.created_at
                    self._connection.execute(
                        INSERT,
                        row_of(record, header, payload, version=version, created_at=created_at),
                    )
        return versions

    def source(self) -> SqliteSource:
        return SqliteSource(self._path)

    def namespaces(self) -> Sequence[NamespaceInfo]:
        with self._translating("be read"):
            return sqlite_namespaces.infos(self._connection)

    def version(self, namespace: str) -> int:
        return self._version(namespace)

    def expired(self, now: float) -> Sequence[tuple[str, str]]:
        rows = self._query(
            "SELECT namespace, id FROM documents WHERE expires_at <= ? ORDER BY position", (now,)
        )
        return [(namespace, document_id) for namespace, document_id in rows]

    def check(self) -> None:
        with self._writing():
            # A deleted or replaced file would go on taking writes that nobody will ever read.
            if self._path.stat().st_ino != self._inode:
                raise StoreError(f"{self._path} was replaced while the store was open")
            self._version("")

    def close(self) -> None:
        with self._translating("be closed"):
            self._connection.close()
        self._lock.release()

    def _read(
        self, namespace: str, document_id: str, fingerprint: Fingerprint | None
    ) -> DocumentRecord | None:
        rows = self._query(
            f"SELECT {RECORD} FROM documents WHERE namespace = ? AND id = ?",
            (namespace, document_id),
        )
        return record_of(namespace, rows[0], fingerprint) if rows else None

    def _version(self, namespace: str) -> int:
        rows = self._query("SELECT version FROM namespaces WHERE namespace = ?", (namespace,))
        return int(rows[0][0]) if rows else 0

    def _next_version(self, namespace: str) -> int:
        self._connection.execute(
            "INSERT INTO namespaces VALUES (?, 1) "
            "ON CONFLICT (namespace) DO UPDATE SET version = version + 1",
            (namespace,),
        )
        return self._version(namespace)

    def _remove(self, namespace: str, ids: Sequence[str]) -> None:
        for part, marks in in_parts(ids):
            self._connection.execute(
                f"DELETE FROM documents WHERE namespace = ? AND id IN ({marks})",
                (namespace, *part),
            )

    def _query(self, statement: str, values: Sequence[object] = ()) -> Any:
        with self._translating("be read"):
            return self._connection.execute(statement, tuple(values)).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: committed and synced at the end, or rolled back whole."""
        with self._translating("be written"), transaction(self._connection):
            yield

    def _translating(self, outcome: str) -> AbstractContextManager[None]:
        return translating(f"the store {self._path} could not {outcome}")
