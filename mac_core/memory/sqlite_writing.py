"""One write to SQLite and what its errors are called: of the documents as of the jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from mac_core.errors import InvalidInput, StoreError


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Committed and synced at the end, or rolled back whole."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn what SQLite raises into our errors; `what` could not be done, in words."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{what}: {error}") from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error
