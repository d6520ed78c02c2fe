"""A Redis URL that means nothing is refused before anything connects, and without its password."""

from __future__ import annotations

import pytest

from mac_core.errors import StoreError
from mac_core.memory.opening import open_job_store, open_source, open_store
from mac_core.memory.redis_url import check_url, database_of


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/",
        "redis://host:6379/0",
        "redis://[::1]:6379/3",
        "redis://user:p%40ss@host/0?socket_timeout=5&health_check_interval=0",
        "rediss://host/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2&password=p",
    ],
)
def test_what_redis_takes_passes(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:secret@host:6379/abc", "database 'abc', which is not a number"),
        ("redis://:secret@host:6379/-1", "database '-1', which is not a number"),
        ("redis://:secret@host:6379/1/2", "database '1/2', which is not a number"),
        ("redis://:secret@host/?db=abc", "option 'db' that is not a number"),
        ("redis://host/0?password=secret&timout=3", "unknown option 'timout'"),
        ("redis://host/0?password=secret&socket_timeot=3", "did you mean socket_timeout"),
        ("redis://host/0?password=secret&socket_timeout=soon", "not seconds above 0"),
        ("redis://host/0?password=secret&socket_timeout=0", "not seconds above 0"),
        ("redis://host/0?password=secret&max_connections=", "'max_connections' that is not a num"),
        ("redis://host/0?password=secret&ssl_ca_certs=x", "one of rediss://"),
        ("rediss://host/0?password=secret&ssl_cert_reqs=maybe", "none, optional or required"),
        ("redis://host/0?password=secret&decode_responses=true", "unknown option"),
        ("redis://:secret@/0", "names no host"),
        ("redis://:secret@:6379/0", "names no host"),
        ("redis:///0?password=secret", "names no host: expected redis://HOST:PORT/DB"),
        ("unix://?password=secret", "names no socket"),
        ("redis://:secret@host:port/0", "is not a Redis URL"),
        ("redis://:secret@host:99999/0", "is not a Redis URL"),
        ("redis://:secret#@host/0", "Redis URL|names no host"),
    ],
)
def test_what_it_does_not_take_is_named(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("opens", [open_source, open_job_store])
def test_everything_that_opens_a_store_checks_its_url(opens: object) -> None:
    with pytest.raises(StoreError, match="not a number from 0"):
        opens("redis://127.0.0.1:1/abc")  # type: ignore[operator]
    with pytest.raises(StoreError, match="not a number from 0"):
        open_store("redis://127.0.0.1:1/abc", fingerprint=None)


@pytest.mark.parametrize(
    ("url", "database"),
    [("redis://h", 0), ("redis://h/", 0), ("redis://h/3", 3), ("redis://h/3?db=4", 4),
     ("unix:///s/7", 0), ("unix:///s?db=2", 2)],
)  # fmt: skip
def test_the_database_is_the_one_that_the_client_takes(url: str, database: int) -> None:
    assert database_of(url) == database
