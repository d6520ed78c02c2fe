"""A store that several servers write to, and how one of them follows what the others wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store


class Head(NamedTuple):
    """Where a namespace stands. Two histories can reach one version; they cannot share a mark."""

    version: int
    mark: str  # of the write that made the version; empty at version 0


NOTHING = Head(0, "")


class LastWrite(NamedTuple):
    """What a store object's last write did."""

    head: Head
    previous_mark: str  # of the version before it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FetchedRecord:
    """A document as it came over the wire; `decode` makes tensors, so engine thread only.

    Raises of `decode`: as reading a record from the store.
    """

    id: str
    version: int
    mark: str
    decode: Callable[[], DocumentRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What leads from one head of a namespace to a later one, or to another history's."""

    after: Head
    head: Head
    removed_ids: tuple[str, ...]
    written: Mapping[str, int]  # id: version that wrote it last; in order of writing
    is_reload: bool = False  # everything held before is void
    is_drop: bool = False  # because the namespace was deleted, and nothing is wrong


class ChangeFeed(Protocol):
    """Reads what all servers wrote. One thread at a time, any thread; every call may block.

    Every method raises StoreError when the store does not answer, and tries each time anew.
    """

    def heads(self) -> dict[str, Head]:
        """Every namespace ever written to; one at version 0 is about to be."""
        ...

    def wait(self, versions: Mapping[str, int], *, timeout_s: float) -> frozenset[str]:
        """Namespaces with a later version than the one given, and those that are not in `versions`.

        Comes back early with the first.
        """
        ...

    def delta(self, namespace: str, after: Head, known: Callable[[], Mapping[str, str]]) -> Delta:
        """What has happened after `after`; when that is no longer known, by comparing documents.

        Args:
            known: gives the marks of the documents held, by id; called only to compare.
        """
        ...

    def fetch(self, namespace: str, ids: Sequence[str]) -> list[FetchedRecord]:
        """Those of `ids` that are there now."""
        ...


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store with other writers."""

    @property
    def last_write(self) -> LastWrite:
        """After `put` or `delete` changed something: what that was."""
        ...

    @property
    def feed(self) -> ChangeFeed: ...

    @property
    def is_away(self) -> bool:
        """Whether the store did not answer when it was last asked. Any thread."""
        ...

    def leave_probing_to_feed(self, leave: bool) -> None:
        """While it is away, fail at once and let the feed's next success say that it is back."""
        ...
