"""A store's records as they lie there, read beside whoever writes: for snapshots and re-indexing.

Nothing is decoded and nothing is written. Each namespace is copied at one version of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mac_core.types import NamespaceInfo


class RawRecord(NamedTuple):
    """A document's record, and what the store assigned to it."""

    id: str
    version: int
    created_at: float
    header: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a namespace was at one version."""

    version: int
    ids: Sequence[str]  # in order of writing


class Source(Protocol):
    """Reads records as they are. One thread at a time, any thread, beside the store's own."""

    @property
    def kind(self) -> str:
        """Of the store."""
        ...

    def namespaces(self) -> Sequence[NamespaceInfo]: ...

    def copy(self, namespace: str, keep: Callable[[RawRecord], None]) -> Copied:
        """Give `keep` every record, and say afterwards which of them count.

        A document that is written meanwhile may be given again; the last time counts. One whose id
        is not among `Copied.ids` is void.

        Raises:
            StoreError: the store cannot be read.
        """
        ...

    def close(self) -> None: ...
