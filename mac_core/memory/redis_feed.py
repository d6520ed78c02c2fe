"""What all servers wrote to Redis, read from each namespace's stream of changes.

An entry's id is the version it made, so that a missing one is seen. A stream and not pub/sub,
which forgets what nobody was listening to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from mac_core.memory.redis_client import Availability, translating
from mac_core.memory.redis_cluster import RedisClient, ask_all, next_entries
from mac_core.memory.redis_keys import ANNOUNCEMENTS, NamespaceKeys
from mac_core.memory.redis_reading import (
    head_of,
    read_all_stamps,
    read_namespaces,
    read_rows,
)
from mac_core.memory.redis_rows import record_of
from mac_core.memory.shared import Delta, FetchedRecord, Head
from mac_core.types import Fingerprint

CHANGES_AT_ONCE = 500

Change = tuple[int, Mapping[bytes, bytes]]  # version and fields


class RedisFeed:
    """A `ChangeFeed`: one thread at a time, any thread, beside the store's own."""

    def __init__(
        self,
        client: RedisClient,
        *,
        name: str,
        fingerprint: Fingerprint | None,
        availability: Availability,
    ) -> None:
        self._client = client
        self._name = name
        self._fingerprint = fingerprint
        self._availability = availability
        self._announced = "0-0"

    def heads(self) -> dict[str, Head]:
        with self._translating():
            names = read_namespaces(self._client)
            answers = ask_all(
                self._client,
                [("HMGET", NamespaceKeys.of(name).meta, "version", "mark") for name in names],
            )
        return {name: head_of(*meta) for name, meta in zip(names, answers, strict=True)}

    def wait(self, versions: Mapping[str, int], *, timeout_s: float) -> frozenset[str]:
        streams = {NamespaceKeys.of(name).changes: name for name in versions}
        after = {key: f"{versions[name]}-0" for key, name in streams.items()} | {
            ANNOUNCEMENTS: self._announced
        }
        with self._translating():
            found = next_entries(self._client, after, timeout_s=timeout_s)
        moved = {streams[key] for key in found if key != ANNOUNCEMENTS}
        if ANNOUNCEMENTS in found:
            self._announced = found[ANNOUNCEMENTS]
            moved |= self.heads().keys() - versions.keys()
        return frozenset(moved)

    def delta(self, namespace: str, after: Head, known: Callable[[], Mapping[str, str]]) -> Delta:
        with self._translating():
            changes = list(self._changes(namespace, after.version)) if after.version else []
            if not changes or not _begins_at(changes[0], after):
                return self._compare(namespace, after, known())
        written: dict[str, int] = {}
        removed: dict[str, None] = {}
        is_drop = False
        for version, fields in changes[1:]:
            if b"restore" in fields:  # too much for an entry
                return self._compare(namespace, after, known())
            if b"drop" in fields:
                written, removed, is_drop = {}, {}, True
            for name in json.loads(fields.get(b"put", b"[]")):
                written.pop(name, None)
                written[name] = version
                removed.pop(name, None)
            for name in json.loads(fields.get(b"delete", b"[]")):
                written.pop(name, None)
                removed[name] = None
        version, fields = changes[-1]
        return Delta(
            after=after,
            head=Head(version, fields[b"mark"].decode()),
            removed_ids=tuple(removed),
            written=written,
            is_reload=is_drop,
            is_drop=is_drop,
        )

    def fetch(self, namespace: str, ids: Sequence[str]) -> list[FetchedRecord]:
        with self._translating():
            rows = read_rows(self._client, NamespaceKeys.of(namespace), ids)
        return [
            FetchedRecord(
                id=row.id,
                version=row.stamp.version,
                mark=row.stamp.mark,
                decode=partial(record_of, namespace, row, self._fingerprint),
            )
            for row in rows
        ]

    def _changes(self, namespace: str, first: int) -> Iterator[Change]:
        """Versions from `first` on, without a gap but perhaps with a later beginning."""
        key = NamespaceKeys.of(namespace).changes
        start = f"{first}-0"
        while True:
            page: Any = self._client.xrange(key, min=start, count=CHANGES_AT_ONCE)
            for entry, fields in page:
                yield _version_of(entry), fields
            if len(page) < CHANGES_AT_ONCE:
                return
            start = f"({page[-1][0].decode()}"

    def _compare(self, namespace: str, after: Head, known: Mapping[str, str]) -> Delta:
        """All that differs from the documents held, whatever has happened."""
        keys = NamespaceKeys.of(namespace)
        head, stamps = read_all_stamps(self._client, keys)
        same = {name for name, stamp in stamps.items() if known.get(name) == stamp.mark}
        changed = stamps.keys() - same
        last = max((stamps[name].position for name in same), default=0)
        # In another history a document that is new here can stand before one that is not.
        is_reload = any(stamps[name].position < last for name in changed)
        written = stamps.keys() if is_reload else changed
        return Delta(
            after=after,
            head=head,
            removed_ids=() if is_reload else tuple(known.keys() - stamps.keys()),
            written={
                name: stamps[name].version
                for name in sorted(written, key=lambda name: stamps[name].position)
            },
            is_reload=is_reload,
        )

    def _translating(self) -> AbstractContextManager[None]:
        return translating(self._name, "be followed", self._availability, tries_always=True)


def _version_of(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _begins_at(change: Change, head: Head) -> bool:
    version, fields = change
    return version == head.version and fields[b"mark"].decode() == head.mark
