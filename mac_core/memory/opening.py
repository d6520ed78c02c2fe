"""Which store a URL names. `sqlite:///DIRECTORY` is relative, `sqlite:////DIRECTORY` absolute."""

from __future__ import annotations

from pathlib import Path

from mac_core.errors import StoreError
from mac_core.memory.copying import Source
from mac_core.memory.jobs import JobStore
from mac_core.memory.redis_client import Availability, connect
from mac_core.memory.redis_jobs import RedisJobStore
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.redis_url import public_name
from mac_core.memory.sources import RedisSource, SqliteSource
from mac_core.memory.sqlite_jobs import SqliteJobStore
from mac_core.memory.sqlite_store import DATABASE, SqliteStore
from mac_core.memory.store import Store
from mac_core.types import Fingerprint

REDIS_SCHEMES = ("redis", "rediss", "unix")


def open_store(url: str, *, fingerprint: Fingerprint | None) -> Store:
    """
    Args:
        fingerprint: the networks in use; None: read any record, write none.

    Raises:
        StoreError: the URL names no store, or the store cannot be opened.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        return SqliteStore(Path(rest[1:]), fingerprint=fingerprint)
    if scheme in REDIS_SCHEMES:
        return RedisStore(url, fingerprint=fingerprint)
    raise StoreError(_no_store(url))


def open_source(url: str) -> Source:
    """A reader of the records as they lie there, also of a store that a server uses.

    Raises:
        StoreError: the URL names no store, or there is none.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        return SqliteSource(Path(rest[1:]) / DATABASE)
    if scheme in REDIS_SCHEMES:
        return RedisSource(
            connect(url), name=public_name(url), availability=Availability(), owns_client=True
        )
    raise StoreError(_no_store(url))


def _no_store(url: str) -> str:
    expected = "sqlite:///DIRECTORY or redis://HOST:PORT/DB"
    return f"{public_name(url)!r} names no store: expected {expected}"


def url_of_directory(directory: Path) -> str:
    """The URL of the SQLite store in a directory."""
    return f"sqlite:///{directory}"


def open_job_store(url: str) -> JobStore:
    """The jobs beside the store of `url`; of SQLite only while that store is open, for its lock.

    Raises:
        StoreError: as `open_store`.
    """
    scheme, _, rest = url.partition("://")
    if scheme in REDIS_SCHEMES:
        return RedisJobStore(url)
    return SqliteJobStore(Path(rest.removeprefix("/")))
