"""How the tests open each store: again and again on the same data, with any fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mac_core.memory.redis_store import RedisStore
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.memory.store import Store
from mac_core.types import Fingerprint

FINGERPRINT = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)


class OpenStore(Protocol):
    """Opens the test's store; whoever opens it closes it."""

    def __call__(self, fingerprint: Fingerprint | None = FINGERPRINT) -> Store: ...


def sqlite_in(directory: Path) -> OpenStore:
    return lambda fingerprint=FINGERPRINT: SqliteStore(directory, fingerprint=fingerprint)


def redis_at(url: str) -> OpenStore:
    return lambda fingerprint=FINGERPRINT: RedisStore(url, fingerprint=fingerprint)


MakeEmpty = Callable[[], OpenStore]  # a store without anything, whatever was before
