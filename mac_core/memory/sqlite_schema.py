"""The SQLite store's tables and how its database is opened, created and recognised."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from mac_core.errors import StoreError
from mac_core.memory import sqlite_namespaces
from mac_core.memory.records import metadata_matches
from mac_core.types import MetadataValue

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 5_000
SCHEMA = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE namespaces (namespace TEXT PRIMARY KEY, version INTEGER NOT NULL);
CREATE TABLE documents (
    position INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of writing, never used twice
    namespace TEXT NOT NULL REFERENCES namespaces (namespace),
    id TEXT NOT NULL,
    title TEXT,
    metadata TEXT NOT NULL,
    published_at REAL,
    expires_at REAL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    content_hash TEXT NOT NULL,
    version INTEGER NOT NULL,
    num_chunks INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    header TEXT NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (namespace, id)
);
CREATE INDEX documents_in_order ON documents (namespace, position);
CREATE INDEX documents_by_expiry ON documents (expires_at) WHERE expires_at IS NOT NULL;
INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}');
COMMIT;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Connect, durable at every commit; create the tables when there are none.

    Raises:
        StoreError: not a store, or written by a newer version.
        sqlite3.Error: not usable.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # A flipped bit must reach the record's checksum instead of stopping the reading of a page.
        connection.text_factory = readable
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.create_function("metadata_matches", 2, _metadata_matches, deterministic=True)
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        connection.executescript(SCHEMA)
    elif "meta" not in tables:
        raise StoreError(f"{path} is an SQLite database, but not a store")
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    found = None if row is None else row[0]
    if found is None or not found.isdecimal():
        raise StoreError(f"{path} has no schema version: {found!r}")
    if int(found) > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer version (schema {found}); "
            f"this one reads up to {SCHEMA_VERSION}"
        )
    sqlite_namespaces.prepare(connection)


def readable(text: bytes) -> str:
    """As UTF-8, whatever the disk has made of it."""
    return text.decode("utf-8", "replace")


def metadata_of(column: str) -> dict[str, MetadataValue]:
    """Empty when the column was damaged: a list goes on over it. The record has its own copy."""
    try:
        found = json.loads(column)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _metadata_matches(metadata: str, wanted: str) -> bool:
    """The bank's own rule, on JSON texts: one meaning of a filter everywhere."""
    return metadata_matches(metadata_of(metadata), json.loads(wanted))
