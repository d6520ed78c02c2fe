"""What is particular to a Redis Cluster; on one server each function does the plain thing.

Every key of a namespace lies in one slot (`redis_keys`), and each slot on one primary. A script
or command of one namespace goes there by redis-py's own client. What concerns several namespaces
is sent to each primary in one pipeline, and is not one moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from redis import Redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    RedisClusterException,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from mac_core.errors import StoreError
from mac_core.memory.redis_url import database_of, public_name

T = TypeVar("T")

RedisClient: TypeAlias = Redis | RedisCluster
Question: TypeAlias = tuple[Any, ...]  # a command of one key, which is its second word
NO_PRIMARY = (ClusterDownError, RedisClusterException)  # what a cluster says while it cannot serve
REDIRECTED = (AskError, TryAgainError)  # MOVED is an AskError, too
POLL_S = 0.02  # between looks at the streams: one command can wait on one primary only
MAX_POLL_SHARE = 0.2  # of the time that is spent looking, when there are many streams
MAX_BLOCK_SHARE = 0.5  # of a command's timeout; silence for all of it means that Redis is away


class ClusterClient(RedisCluster):
    """redis-py's client, which does not send again what timed out.

    Trying again would hold the engine thread up for as long again.
    """

    ERRORS_ALLOW_RETRY = (  # type: ignore[assignment]  # of a tuple of four
        RedisConnectionError,
        ClusterDownError,
        SlotNotCoveredError,
    )


def is_cluster(client: Redis, url: str) -> bool:
    """Whether the server is a node of a cluster.

    Raises:
        StoreError: it is, and the URL names another database than a cluster's only one.
    """
    try:
        return bool(client.info("cluster").get("cluster_enabled"))
    except ResponseError as error:
        if database_of(url) and "SELECT" in str(error):  # said when the connection is made
            raise StoreError(_only_database(url)) from None
        raise


def connect_to_cluster(url: str, *, retry: Retry, **options: Any) -> RedisCluster:
    """A client of the whole cluster that the server of `url` belongs to; connects now.

    Raises:
        StoreError: the URL names what a cluster does not have.
    """
    if url.startswith("unix://"):
        raise StoreError(
            f"{public_name(url)} is one node of a Redis Cluster, whose others are elsewhere: "
            "expected redis://HOST:PORT/0 or rediss://HOST:PORT/0"
        )
    if database_of(url):
        raise StoreError(_only_database(url))
    return ClusterClient.from_url(url, retry=retry, **options)


def _only_database(url: str) -> str:
    return (
        f"{public_name(url)} is a Redis Cluster, which has database 0 alone: "
        f"it cannot be database {database_of(url)}"
    )


def servers_of(client: RedisClient, name: str) -> Iterator[tuple[Redis, str]]:
    """Each server that holds documents, and what to call it."""
    if isinstance(client, Redis):
        yield client, name
        return
    for node in client.nodes_manager.get_nodes_by_server_type("primary"):
        yield client.get_redis_connection(node), f"{name} (its primary {node.name})"


def by_slot(
    client: RedisClient, items: Sequence[T], key_of: Callable[[T], str]
) -> list[Sequence[T]]:
    """`items` in groups that one script can take; on one server, all of them."""
    if isinstance(client, Redis):
        return [items] if items else []
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(key_slot(key_of(item).encode()), []).append(item)
    return list(groups.values())


def ask_all(client: RedisClient, questions: Sequence[Question]) -> list[Any]:
    """The answer to each; together they are not one moment. Any may be sent twice.

    Raises:
        RedisError, RedisClusterException: the first that could not be answered.
    """
    if isinstance(client, Redis):
        return _ask_server(client, questions, raise_on_error=True)
    answers: dict[int, Any] = {}

    def ask_the_rest() -> None:
        rest = [place for place in range(len(questions)) if place not in answers]
        for node, places in _by_primary(client, questions, rest):
            try:
                found = _ask_server(
                    client.get_redis_connection(node),
                    [questions[place] for place in places],
                    raise_on_error=False,
                )
            except (RedisConnectionError, RedisTimeoutError):
                client.nodes_manager.initialize(last_failed_node_name=node.name)
                raise
            for place, answer in zip(places, found, strict=True):
                # A slot that has moved, or is about to: the client knows how to follow it.
                is_elsewhere = isinstance(answer, REDIRECTED)
                answers[place] = (
                    client.execute_command(*questions[place])  # type: ignore[no-untyped-call]
                    if is_elsewhere
                    else answer
                )
                if isinstance(answer, Exception) and not is_elsewhere:
                    raise answer

    client.retry.call_with_retry(ask_the_rest, lambda error: None)
    return [answers[place] for place in range(len(questions))]


def next_entries(
    client: RedisClient, after: Mapping[str, str], *, timeout_s: float
) -> dict[str, str]:
    """The id of the next entry of each stream that has one; waits for the first.

    Args:
        after: the id behind which to look, for each stream.
        timeout_s: one server is waited on for no more than half of its client's `socket_timeout`.
    """
    if isinstance(client, Redis):
        streams: dict[Any, Any] = dict(after)
        reply: Any = client.xread(streams, count=1, block=_block_ms(client, timeout_s))
        return {key.decode(): entries[0][0].decode() for key, entries in reply or ()}
    # Blocking would be one connection for each slot. XRANGE finds the same entry as XREAD, and
    # its key is where every client expects it.
    questions = [("XRANGE", key, f"({last}", "+", "COUNT", 1) for key, last in after.items()]
    until = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        answers = ask_all(client, questions)
        found = {key: page[0][0].decode() for key, page in zip(after, answers, strict=True) if page}
        now = time.monotonic()
        pause = max(POLL_S, (now - began) / MAX_POLL_SHARE)
        if found or now + pause >= until:
            return found
        time.sleep(pause)


def _block_ms(client: Redis, timeout_s: float) -> int:
    """At least 1: Redis takes 0 for ever."""
    command_s: float = client.get_connection_kwargs()["socket_timeout"]
    return max(1, int(1000 * min(timeout_s, MAX_BLOCK_SHARE * command_s)))


def _ask_server(server: Redis, questions: Sequence[Question], *, raise_on_error: bool) -> list[Any]:
    with server.pipeline(transaction=False) as pipeline:
        for question in questions:
            pipeline.execute_command(*question)  # type: ignore[no-untyped-call]
        answers: list[Any] = pipeline.execute(raise_on_error=raise_on_error)
    return answers


def _by_primary(
    client: RedisCluster, questions: Sequence[Question], places: Sequence[int]
) -> list[tuple[ClusterNode, list[int]]]:
    nodes: dict[str, tuple[ClusterNode, list[int]]] = {}
    for place in places:
        node = client.nodes_manager.get_node_from_slot(key_slot(questions[place][1].encode()))
        nodes.setdefault(node.name, (node, []))[1].append(place)
    return list(nodes.values())
