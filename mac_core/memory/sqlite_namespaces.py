"""When each namespace of an SQLite store was made, last written and deleted.

Kept beside the versions by triggers, so that every write notes its time, whoever makes it. A row
stays when its namespace is deleted: the version that it counts on from stays too.
"""

from __future__ import annotations

import sqlite3

from mac_core.types import NamespaceInfo

_NOW = "(julianday('now') - 2440587.5) * 86400.0"  # seconds since the epoch, to the millisecond
_NOTE = f"""
    INSERT INTO namespace_life VALUES (new.namespace, {_NOW}, {_NOW}, NULL)
    ON CONFLICT (namespace) DO UPDATE SET
        created_at = CASE WHEN deleted_at IS NULL THEN created_at ELSE {_NOW} END,
        updated_at = {_NOW},
        deleted_at = NULL;
"""
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE namespace_life (
    namespace TEXT PRIMARY KEY, created_at REAL, updated_at REAL, deleted_at REAL
);
INSERT INTO namespace_life
    SELECT n.namespace, MIN(d.created_at), MAX(d.updated_at), NULL
    FROM namespaces AS n LEFT JOIN documents AS d ON d.namespace = n.namespace
    GROUP BY n.namespace;
CREATE TRIGGER namespace_is_made AFTER INSERT ON namespaces BEGIN {_NOTE} END;
CREATE TRIGGER namespace_is_written AFTER UPDATE ON namespaces BEGIN {_NOTE} END;
COMMIT;
"""
_LIST = """
SELECT n.namespace, COUNT(d.id), COALESCE(SUM(d.num_chunks), 0), COALESCE(SUM(d.num_bytes), 0),
    n.version, l.created_at, l.updated_at
FROM namespaces AS n
LEFT JOIN documents AS d ON d.namespace = n.namespace
LEFT JOIN namespace_life AS l ON l.namespace = n.namespace
WHERE l.deleted_at IS NULL
GROUP BY n.namespace ORDER BY n.namespace
"""
_COLUMNS = (
    *("namespace", "num_documents", "num_chunks", "num_bytes"),
    *("bank_version", "created_at", "updated_at"),
)


def prepare(connection: sqlite3.Connection) -> None:
    """Make what is missing: a database of a version before this one has none of it."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'namespace_life'"
    if connection.execute(query).fetchone() is None:
        connection.executescript(SCHEMA)


def is_there(connection: sqlite3.Connection, namespace: str) -> bool:
    """Whether it was made and not deleted since."""
    query = "SELECT 1 FROM namespace_life WHERE namespace = ? AND deleted_at IS NULL"
    return connection.execute(query, (namespace,)).fetchone() is not None


def note_deleted(connection: sqlite3.Connection, namespace: str) -> None:
    """After the version that has removed it."""
    connection.execute(
        f"UPDATE namespace_life SET deleted_at = {_NOW} WHERE namespace = ?", (namespace,)
    )


def infos(connection: sqlite3.Connection) -> list[NamespaceInfo]:
    """Those that are there, by name."""
    rows = connection.execute(_LIST).fetchall()
    return [NamespaceInfo(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]
