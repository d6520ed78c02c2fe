"""Putting a namespace back into an SQLite store; inside the transaction that does the whole."""

from __future__ import annotations

import sqlite3

from mac_core.errors import NamespaceNotEmpty


def clear(connection: sqlite3.Connection, namespace: str, *, is_replacing: bool) -> int:
    """Remove what the namespace holds; its version.

    Raises:
        NamespaceNotEmpty: it holds documents, and they are not to be replaced.
    """
    query = "SELECT COUNT(*) FROM documents WHERE namespace = ?"
    (count,) = connection.execute(query, (namespace,)).fetchone()
    if count and not is_replacing:
        raise NamespaceNotEmpty(namespace=namespace, num_documents=count)
    connection.execute("DELETE FROM documents WHERE namespace = ?", (namespace,))
    query = "SELECT version FROM namespaces WHERE namespace = ?"
    row = connection.execute(query, (namespace,)).fetchone()
    return 0 if row is None else int(row[0])


def set_version(connection: sqlite3.Connection, namespace: str, version: int) -> None:
    """A later one than it has."""
    connection.execute(
        "INSERT INTO namespaces VALUES (?, ?) "
        "ON CONFLICT (namespace) DO UPDATE SET version = excluded.version",
        (namespace, version),
    )
