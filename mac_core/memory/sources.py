"""The readers of each store's records as they lie there; what they are for: `copying`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mac_core.errors import StoreError
from mac_core.memory import sqlite_namespaces
from mac_core.memory.copying import Copied, RawRecord
from mac_core.memory.redis_client import Availability, translating
from mac_core.memory.redis_cluster import RedisClient
from mac_core.memory.redis_keys import NamespaceKeys
from mac_core.memory.redis_reading import parts, read_all_stamps, read_infos, read_rows
from mac_core.memory.redis_rows import Row
from mac_core.memory.sqlite_schema import readable
from mac_core.types import NamespaceInfo

ROWS_AT_ONCE = 16  # documents in memory at once; each is about 0.1 MB a chunk
MAX_ROUNDS = 50  # of reading again what was written meanwhile


class SqliteSource:
    """One read transaction: every namespace as it was at the first reading."""

    def __init__(self, database: Path) -> None:
        """
        Raises:
            StoreError: there is no such database.
        """
        self._path = database
        with self._translating():
            uri = f"{database.resolve().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.text_factory = readable
        try:
            with self._translating():
                self._connection.execute("BEGIN")
                self._has_life = self._has_table("namespace_life")
        except BaseException:
            self._connection.close()
            raise

    @property
    def kind(self) -> str:
        return "sqlite"

    def namespaces(self) -> Sequence[NamespaceInfo]:
        if not self._has_life:
            raise StoreError(f"{self._path} is of an older version: start a server on it once")
        with self._translating():
            return sqlite_namespaces.infos(self._connection)

    def copy(self, namespace: str, keep: Callable[[RawRecord], None]) -> Copied:
        ids: list[str] = []
        with self._translating():
            row = self._connection.execute(
                "SELECT version FROM namespaces WHERE namespace = ?", (namespace,)
            ).fetchone()
            rows = self._connection.execute(
                "SELECT id, version, created_at, header, payload FROM documents "
                "WHERE namespace = ? ORDER BY position",
                (namespace,),
            )
            while part := rows.fetchmany(ROWS_AT_ONCE):
                for found in part:
                    keep(RawRecord(*found))
                    ids.append(found[0])
        return Copied(version=0 if row is None else int(row[0]), ids=ids)

    def close(self) -> None:
        self._connection.close()

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE name = ?"
        return self._connection.execute(query, (name,)).fetchone() is not None

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} could not be read: {error}") from error


class RedisSource:
    """What is listed at one moment, fetched; and again what was written before it was fetched."""

    def __init__(
        self,
        client: RedisClient,
        *,
        name: str,
        availability: Availability,
        owns_client: bool = False,
    ) -> None:
        """`name`: of the server, without its password; `owns_client`: closed with the source."""
        self._owns_client = owns_client
        self._client = client
        self._name = name
        self._availability = availability

    @property
    def kind(self) -> str:
        return "redis"

    def namespaces(self) -> Sequence[NamespaceInfo]:
        with self._translating():
            return read_infos(self._client)

    def copy(self, namespace: str, keep: Callable[[RawRecord], None]) -> Copied:
        keys = NamespaceKeys.of(namespace)
        held: dict[str, str] = {}  # marks, by id
        for _ in range(MAX_ROUNDS):
            with self._translating():
                head, stamps = read_all_stamps(self._client, keys)
            order = sorted(stamps, key=lambda name: stamps[name].position)
            missing = [name for name in order if held.get(name) != stamps[name].mark]
            for part in parts(missing, ROWS_AT_ONCE):
                with self._translating():
                    rows = read_rows(self._client, keys, part)
                for row in rows:
                    held[row.id] = row.stamp.mark
                    keep(_raw(row))
            if all(held.get(name) == stamps[name].mark for name in order):
                return Copied(version=head.version, ids=order)
        raise StoreError(f"namespace {namespace!r} of {self._name} is written faster than read")

    def close(self) -> None:
        if self._owns_client:
            self._client.close()

    def _translating(self) -> AbstractContextManager[None]:
        # Never around `keep`: a full disk is not an absent Redis.
        return translating(self._name, "be read", self._availability)


def _raw(row: Row) -> RawRecord:
    # A header that is not ASCII is corrupt, and its checksum will say so.
    header = row.header.decode("ascii", "replace")
    return RawRecord(row.id, row.stamp.version, row.stamp.created_at, header, row.payload)
