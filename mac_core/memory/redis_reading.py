"""Reading documents from Redis: each call sees one moment, whoever writes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from mac_core.memory.redis_cluster import Question, RedisClient, ask_all
from mac_core.memory.redis_keys import NAMESPACES, NamespaceKeys
from mac_core.memory.redis_rows import NAMESPACE_FIELDS, Row, Stamp, namespace_info_of
from mac_core.memory.redis_scripts import FIELDS, STAMPS
from mac_core.memory.shared import NOTHING, Head
from mac_core.types import NamespaceInfo

T = TypeVar("T")

IDS_PER_COMMAND = 500


def read_rows(
    client: RedisClient, keys: NamespaceKeys, ids: Sequence[str], *, with_payload: bool = True
) -> list[Row]:
    """Those of `ids` that are there, in their order."""
    hashes = (
        [keys.stamps, keys.headers, keys.payloads] if with_payload else [keys.stamps, keys.headers]
    )
    read = client.register_script(FIELDS)
    rows: list[Row] = []
    for part in parts(ids, IDS_PER_COMMAND):
        stamps, headers, *rest = read(keys=hashes, args=[name.encode() for name in part])
        payloads = rest[0] if with_payload else [b""] * len(part)
        rows += [
            Row(name, Stamp.parse(stamp), header or b"", payload or b"")
            for name, stamp, header, payload in zip(part, stamps, headers, payloads, strict=True)
            if stamp is not None
        ]
    return rows


def read_all_stamps(client: RedisClient, keys: NamespaceKeys) -> tuple[Head, dict[str, Stamp]]:
    """Of every document, and the head they belong to."""
    meta, found = client.register_script(STAMPS)(keys=[keys.meta, keys.stamps])
    pairs = zip(found[::2], found[1::2], strict=True)
    return head_of(*meta), {name.decode(): Stamp.parse(stamp) for name, stamp in pairs}


def head_of(version: bytes | None, mark: bytes | None) -> Head:
    """From two fields of the namespace's meta hash."""
    return NOTHING if version is None else Head(int(version), (mark or b"").decode())


def read_page(
    client: RedisClient, keys: NamespaceKeys, *, after: int, limit: int, with_payload: bool = True
) -> tuple[list[Row], int | None]:
    """Rows behind position `after` in order of writing, and where to go on; None: at the end.

    What was written again between the two commands comes in a later page.
    """
    found: Any = client.zrangebyscore(
        keys.order, f"({after}", "+inf", start=0, num=limit, withscores=True
    )
    places = {name.decode(): int(score) for name, score in found}
    rows = read_rows(client, keys, list(places), with_payload=with_payload)
    kept = [row for row in rows if row.stamp.position == places[row.id]]
    return kept, max(places.values()) if len(places) == limit else None


def read_stamps(client: RedisClient, keys: NamespaceKeys, ids: Sequence[str]) -> dict[str, Stamp]:
    """Stamps of those of `ids` that are there."""
    found: dict[str, Stamp] = {}
    for part in parts(ids, IDS_PER_COMMAND):
        stamps: Any = client.hmget(keys.stamps, [name.encode() for name in part])
        pairs = zip(part, stamps, strict=True)
        found |= {name: Stamp.parse(stamp) for name, stamp in pairs if stamp is not None}
    return found


def read_namespaces(client: RedisClient) -> list[str]:
    """By name; those whose first write never came are among them."""
    names: Any = client.smembers(NAMESPACES)
    return sorted(name.decode() for name in names)


def read_infos(client: RedisClient) -> list[NamespaceInfo]:
    """Of the namespaces that are there, by name."""
    names = read_namespaces(client)
    questions: list[Question] = []
    for name in names:
        keys = NamespaceKeys.of(name)
        questions += [("HMGET", keys.meta, *NAMESPACE_FIELDS), ("ZCARD", keys.order)]
    answers = ask_all(client, questions)
    found = zip(names, answers[::2], answers[1::2], strict=True)
    infos = [namespace_info_of(name, meta, size) for name, meta, size in found]
    return [info for info in infos if info is not None]


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
