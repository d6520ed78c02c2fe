"""A connection to Redis as the store needs it: bounded in time, retried, and believed when away.

Knows nothing of documents. Errors name the server without its password.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from mac_core.errors import InvalidInput, StoreError
from mac_core.memory.redis_cluster import (
    NO_PRIMARY,
    RedisClient,
    connect_to_cluster,
    is_cluster,
)
from mac_core.memory.redis_url import check_url, public_name

logger = logging.getLogger(__name__)

TIMEOUT_S = 3.0  # of one command; `?socket_timeout=` in the URL overrides it
CONNECT_TIMEOUT_S = 1.0
RETRIES = 2
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.05, 0.4
HEALTH_CHECK_INTERVAL_S = 15
PROBE_INTERVAL_S = 1.0
AWAY = (RedisConnectionError, RedisTimeoutError, OSError, *NO_PRIMARY)
# A read-only answer comes from a primary that became a replica: connecting anew finds the new one.
# A timeout is not among them: trying again would hold the engine thread up for as long again.
RETRIED = (RedisConnectionError, ReadOnlyError)


def connect(url: str) -> RedisClient:
    """A client for `redis://`, `rediss://` or `unix://`: of the server, or of its whole cluster.

    Raises:
        StoreError: the URL is not one, or nothing answers there.
    """
    check_url(url)
    name = public_name(url)
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
        "protocol": 2,  # the shape of replies is then the same for every server
        "client_name": "mac-server",
    }
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    # Without it a pool made from a URL gives up on a connection that the server closed.
    retry = Retry(
        ExponentialWithJitterBackoff(base=BACKOFF_BASE_S, cap=BACKOFF_CAP_S),
        RETRIES,
        supported_errors=RETRIED,
    )
    client = Redis.from_url(url, retry=retry, **options)
    is_kept = False
    try:
        with translating(name, "be opened", Availability()):
            is_kept = not is_cluster(client, url)
            return client if is_kept else connect_to_cluster(url, retry=retry, **options)
    finally:
        if not is_kept:
            client.close()


class Availability:
    """Whether Redis answers, as its clients found; shared by them. Any thread.

    While it is away a call fails at once instead of waiting for a timeout: the engine thread has
    questions to answer. One call in `PROBE_INTERVAL_S` tries all the same, unless a follower,
    which tries all the time, has said that it will.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._failed_at: float | None = None
        self.is_probed_elsewhere = False

    @property
    def is_away(self) -> bool:
        return self._failed_at is not None

    def may_try(self) -> bool:
        with self._lock:
            if self._failed_at is None:
                return True
            if self.is_probed_elsewhere or self._clock() < self._failed_at + PROBE_INTERVAL_S:
                return False
            self._failed_at = self._clock()  # the next one waits for this one's outcome
            return True

    def note(self, *, is_away: bool) -> None:
        with self._lock:
            self._failed_at = self._clock() if is_away else None


@contextmanager
def translating(
    name: str, outcome: str, availability: Availability, *, tries_always: bool = False
) -> Iterator[None]:
    """Every failure as a StoreError; whether Redis answered is noted.

    Args:
        outcome: what could not be done, as in "be read".
        tries_always: even when Redis was away a moment ago.

    Raises:
        StoreError: Redis is away, or refused.
        InvalidInput: text that no encoding can write.
    """
    if not (tries_always or availability.may_try()):
        raise StoreError(f"the store {name} could not {outcome}: it does not answer")
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error
    except (RedisError, OSError, *NO_PRIMARY) as error:
        if isinstance(error, AWAY):
            availability.note(is_away=True)
        raise StoreError(f"the store {name} could not {outcome}: {error}") from error
    availability.note(is_away=False)


class Inspectable(Protocol):
    """What the start-up check asks of a client."""

    def info(self, section: str) -> Any: ...

    def config_get(self, pattern: str) -> Any: ...


def check_server(client: Inspectable, name: str) -> None:
    """Refuse a server that forgets documents when memory is short; warn of one without a disk.

    Raises:
        StoreError: its `maxmemory-policy` may evict documents; how to change that.
    """
    policy = str(client.info("memory").get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        raise StoreError(
            f"{name} has maxmemory-policy {policy}: it would silently forget documents when its "
            "memory is full; run `redis-cli CONFIG SET maxmemory-policy noeviction`, and put "
            "`maxmemory-policy noeviction` into redis.conf"
        )
    if policy != "noeviction":  # volatile-*: documents have no expiry, so none of them goes
        logger.warning("%s has maxmemory-policy %s; noeviction says what is meant", name, policy)
    if not client.info("persistence").get("aof_enabled"):
        kept = "snapshots only: a crash loses what came after the last"
        if not _takes_snapshots(client):
            kept = "no persistence: a restart loses every document"
        logger.warning("%s has %s; set `appendonly yes`", name, kept)


def _takes_snapshots(client: Inspectable) -> bool:
    try:
        return bool(client.config_get("save").get("save"))
    except ResponseError:  # a managed Redis may not tell
        return True
