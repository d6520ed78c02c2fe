"""The shared store: one Redis or Redis Cluster, any number of servers.

As durable as that Redis is set to be.

A write is one script (`redis_scripts`) and reaches the other servers through the namespace's
stream of changes (`redis_feed`). When the connection breaks in the middle of a write and stays
broken, the write raises, and Redis has it whole or not at all; sending it again doubles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from uuid import uuid4

from redis.commands.core import Script

from mac_core.errors import CorruptRecord, InvalidInput, StoreError
from mac_core.memory import redis_restoring
from mac_core.memory.cursors import decode_cursor, encode_cursor
from mac_core.memory.record_format import encode_record
from mac_core.memory.records import DocumentRecord, last_of_each_id, metadata_matches
from mac_core.memory.redis_client import (
    Availability,
    check_server,
    connect,
    translating,
)
from mac_core.memory.redis_cluster import ask_all, servers_of
from mac_core.memory.redis_feed import RedisFeed
from mac_core.memory.redis_keys import (
    ANNOUNCEMENTS,
    CHECK,
    NAMESPACES,
    SCHEMA,
    SCHEMA_VERSION,
    NamespaceKeys,
)
from mac_core.memory.redis_reading import (
    read_infos,
    read_namespaces,
    read_page,
    read_rows,
    read_stamps,
)
from mac_core.memory.redis_rows import (
    arguments_of,
    info_of,
    record_of,
)
from mac_core.memory.redis_scripts import CREATE, DELETE, DROP, PUT, REGISTER
from mac_core.memory.redis_url import public_name
from mac_core.memory.restoring import NamespaceContent
from mac_core.memory.shared import NOTHING, Head, LastWrite
from mac_core.memory.sources import RedisSource
from mac_core.memory.store import FILTERED_AT_ONCE, DocumentStamp
from mac_core.types import DocumentInfo, DocumentPage, Fingerprint, MetadataValue, NamespaceInfo

SCAN_ROWS = 16  # documents in memory at once while scanning; each is about 0.1 MB a chunk
LIST_ROWS = 100  # headers read at once while listing
MAX_CHANGES = 10_000  # versions a server may be behind and still catch up by the stream alone
WRITER_S = 600  # how long a write that was sent twice is recognised; a retry takes seconds


class RedisStore:
    """A `SharedStore`. One thread at a time; `feed` and `is_away` from any."""

    def __init__(
        self, url: str, *, fingerprint: Fingerprint | None, max_changes: int = MAX_CHANGES
    ) -> None:
        """Connect, and look at the server's settings.

        Args:
            fingerprint: the networks in use; only their records are written and read. None: read
                any, write none.

        Raises:
            StoreError: away, written by a newer version, or set to evict documents.
        """
        self._name = public_name(url)
        self._fingerprint = fingerprint
        self._max_changes = max_changes
        self._availability = Availability()
        self._writer = uuid4().hex
        self._last_write = LastWrite(NOTHING, "")
        self._is_closed = False
        self._client = connect(url)
        self._put = self._client.register_script(PUT)
        self._delete = self._client.register_script(DELETE)
        self._create = self._client.register_script(CREATE)
        self._drop = self._client.register_script(DROP)
        self._register = self._client.register_script(REGISTER)
        self._feed = RedisFeed(
            self._client, name=self._name, fingerprint=fingerprint, availability=self._availability
        )
        try:
            with self._translating("be opened"):
                for server, name in servers_of(self._client, self._name):
                    check_server(server, name)
                self._check_schema()
        except BaseException:
            self.close()
            raise

    @property
    def kind(self) -> str:
        return "redis"

    @property
    def last_write(self) -> LastWrite:
        return self._last_write

    @property
    def feed(self) -> RedisFeed:
        return self._feed

    @property
    def is_away(self) -> bool:
        return self._availability.is_away

    def leave_probing_to_feed(self, leave: bool) -> None:
        self._availability.is_probed_elsewhere = leave

    def put(self, namespace: str, records: Sequence[DocumentRecord]) -> int:
        if self._fingerprint is None:
            raise StoreError("the store was opened without a fingerprint: it is read-only")
        if any(record.namespace != namespace for record in records):
            raise ValueError(f"a record of another namespace was put into {namespace!r}")
        latest = last_of_each_id(records)
        if not latest:
            return self.version(namespace)
        arguments = [
            argument
            for record in latest
            for argument in arguments_of(record, *encode_record(record, self._fingerprint))
        ]
        change = json.dumps([record.id for record in latest])
        with self._translating("be written"):
            self._announce(namespace)
            return self._write(self._put, namespace, [change, *arguments])[0]

    def delete(
        self, namespace: str, ids: Sequence[str], *, expired_by: float | None = None
    ) -> tuple[tuple[str, ...], int]:
        with self._translating("be written"):
            names = [name.encode() for name in dict.fromkeys(ids)]
            due = "" if expired_by is None else repr(expired_by)
            version, removed = self._write(self._delete, namespace, [due, *names])
        return removed, version

    def get(self, namespace: str, document_id: str) -> DocumentRecord | None:
        return self._read(namespace, document_id, self._fingerprint)

    def info(self, namespace: str, document_id: str) -> DocumentInfo | None:
        record = self._read(namespace, document_id, None)
        return None if record is None else record.info(with_text=True)

    def hashes(self, namespace: str, ids: Sequence[str]) -> dict[str, DocumentStamp]:
        with self._translating("be read"):
            stamps = read_stamps(self._client, NamespaceKeys.of(namespace), ids)
        return {name: stamp.to_document_stamp() for name, stamp in stamps.items()}

    def scan(
        self, namespace: str, *, skip: Callable[[CorruptRecord], None] | None = None
    ) -> Iterator[DocumentRecord]:
        keys = NamespaceKeys.of(namespace)
        after: int | None = 0
        while after is not None:
            with self._translating("be read"):
                rows, after = read_page(self._client, keys, after=after, limit=SCAN_ROWS)
            for row in rows:
                try:
                    yield record_of(namespace, row, self._fingerprint)
                except CorruptRecord as error:
                    if skip is None:
                        raise
                    skip(error)

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
        keys = NamespaceKeys.of(namespace)
        after: int | None = 0 if cursor is None else decode_cursor(cursor)
        at_once = LIST_ROWS if filter else min(LIST_ROWS, limit + 1)
        found: list[tuple[DocumentInfo, int]] = []
        looked_at = 0
        most = FILTERED_AT_ONCE if filter else float("inf")
        while after is not None and len(found) <= limit and looked_at < most:
            with self._translating("be read"):
                rows, after = read_page(
                    self._client, keys, after=after, limit=at_once, with_payload=False
                )
            looked_at += len(rows)
            infos = [(info_of(namespace, row), row.stamp.position) for row in rows]
            found += [pair for pair in infos if metadata_matches(pair[0].metadata, filter or {})]
        page = found[:limit]
        goes_on_after = page[-1][1] if len(found) > limit else after
        return DocumentPage(
            documents=tuple(info for info, _ in page),
            next_cursor=None if goes_on_after is None else encode_cursor(goes_on_after),
        )

    def create_namespace(self, namespace: str) -> tuple[bool, int]:
        with self._translating("be written"):
            self._announce(namespace)
            version, made = self._write(self._create, namespace, [])
        return bool(made), version

    def drop_namespace(self, namespace: str) -> tuple[int | None, int]:
        with self._translating("be written"):
            version, gone = self._write(self._drop, namespace, [])
        return (int(gone[0]) if gone else None), version

    def restore(
        self, contents: Sequence[NamespaceContent], *, is_replacing: bool = False
    ) -> dict[str, int]:
        if self._fingerprint is None:
            raise StoreError("the store was opened without a fingerprint: it is read-only")
        with self._translating("be written"):
            for content in contents:
                self._announce(content.namespace)
            return redis_restoring.restore(
                self._client,
                contents,
                fingerprint=self._fingerprint,
                is_replacing=is_replacing,
                max_changes=self._max_changes,
            )

    def source(self) -> RedisSource:
        return RedisSource(self._client, name=self._name, availability=self._availability)

    def namespaces(self) -> Sequence[NamespaceInfo]:
        with self._translating("be read"):
            return read_infos(self._client)

    def version(self, namespace: str) -> int:
        with self._translating("be read"):
            return int(self._client.hget(NamespaceKeys.of(namespace).meta, "version") or 0)

    def expired(self, now: float) -> Sequence[tuple[str, str]]:
        with self._translating("be read"):
            names = read_namespaces(self._client)
            keys = [NamespaceKeys.of(name).expiry for name in names]
            answers = ask_all(
                self._client, [("ZRANGEBYSCORE", key, "-inf", repr(now)) for key in keys]
            )
        pairs = zip(names, answers, strict=True)
        return [(name, document_id.decode()) for name, ids in pairs for document_id in ids]

    def check(self) -> None:
        with self._translating("be written"):
            self._client.set(CHECK, b"1", ex=60)

    def close(self) -> None:
        self._is_closed = True
        self._client.close()

    def _announce(self, namespace: str) -> None:
        # Before the write, so that no document can be in a namespace that nobody knows of.
        self._register(keys=[NAMESPACES, ANNOUNCEMENTS], args=[namespace.encode()])

    def _write(
        self, script: Script, namespace: str, arguments: Sequence[bytes | str]
    ) -> tuple[int, tuple[str, ...]]:
        """Run one of the writing scripts: the version after it, and what it removed."""
        keys = NamespaceKeys.of(namespace)
        mark = uuid4().hex
        version, before, removed = script(
            keys=[
                *(keys.meta, keys.order, keys.stamps, keys.headers, keys.payloads),
                *(keys.expiry, keys.changes, keys.writer(self._writer)),
            ],
            args=[mark, self._max_changes, WRITER_S, *arguments],
        )
        if removed or script is self._put:  # the others wrote nothing when they found nothing
            self._last_write = LastWrite(Head(int(version), mark), before.decode())
        return int(version), tuple(name.decode() for name in removed)

    def _read(
        self, namespace: str, document_id: str, fingerprint: Fingerprint | None
    ) -> DocumentRecord | None:
        with self._translating("be read"):
            rows = read_rows(self._client, NamespaceKeys.of(namespace), [document_id])
        return record_of(namespace, rows[0], fingerprint) if rows else None

    def _check_schema(self) -> None:
        if self._fingerprint is not None:
            self._client.set(SCHEMA, SCHEMA_VERSION, nx=True)
        found: Any = self._client.get(SCHEMA)
        if found is not None and int(found) > SCHEMA_VERSION:
            raise StoreError(
                f"{self._name} was written by a newer version (schema {int(found)}); "
                f"this one reads up to {SCHEMA_VERSION}"
            )

    def _translating(self, outcome: str) -> AbstractContextManager[None]:
        if self._is_closed:
            raise StoreError(f"the store {self._name} could not {outcome}: it is closed")
        return translating(self._name, outcome, self._availability)
