"""What differs in a Redis Cluster: its servers, and what no command does over several slots.

All keys of a namespace share one slot, so every script runs as in a single server. Waiting for
changes of several namespaces is not one blocking command here; they are polled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster

from mac_core.memory.redis_keys import ANNOUNCEMENTS, NamespaceKeys

OPTION = "cluster"  # `?cluster=true` in the URL
POLL_S = 0.02  # between two looks at the versions

Client = Redis | RedisCluster


def primaries_of(client: Client) -> list[Redis]:
    """Every server that holds documents."""
    if isinstance(client, Redis):
        return [client]
    nodes = client.get_primaries()  # type: ignore[no-untyped-call]
    return [client.get_redis_connection(node) for node in nodes]


def poll(
    client: RedisCluster, versions: Mapping[str, int], announced: str, *, timeout_s: float
) -> tuple[frozenset[str], str]:
    """Wait until a namespace is behind what Redis has, or a namespace was announced.

    Args:
        versions: by namespace, what is known.
        announced: id of the last announcement that is known.

    Returns:
        Namespaces with a later version, and the id of the last announcement; neither changes
        when nothing happens for `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    while True:
        with client.pipeline() as questions:  # type: ignore[no-untyped-call]
            for name in versions:
                questions.hget(NamespaceKeys.of(name).meta, "version")
            questions.xrevrange(ANNOUNCEMENTS, count=1)
            *found, newest = questions.execute()
        pairs = zip(versions.items(), found, strict=True)
        moved = frozenset(name for (name, known), now in pairs if int(now or 0) > known)
        last = newest[0][0].decode() if newest else announced
        if moved or last != announced or time.monotonic() >= until:
            return moved, last
        time.sleep(min(POLL_S, max(0.0, until - time.monotonic())))


def is_cluster(info: Mapping[str, Any]) -> bool:
    """Whether a server is a node of a cluster, by section `server` of its INFO."""
    return info.get("redis_mode") == "cluster"
