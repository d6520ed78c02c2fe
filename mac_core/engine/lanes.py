"""The queues in front of the engine thread, as values: bounded lanes, and one turn's work."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mac_core.engine.tickets import (
    DocumentItem,
    QuestionTicket,
    ReadTicket,
    RemovalTicket,
    Ticket,
    WriteTicket,
)
from mac_core.errors import Overloaded

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0
PACE_WEIGHT = 0.2  # of the newest batch in the running mean of seconds per item

DocumentWork = DocumentItem | RemovalTicket | WriteTicket[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the engine thread does next: exactly one of these, or nothing (it was only woken)."""

    reads: tuple[ReadTicket[Any], ...] = ()
    questions: tuple[QuestionTicket, ...] = ()
    documents: tuple[DocumentItem, ...] = ()  # of one namespace
    removal: RemovalTicket | None = None
    write: WriteTicket[Any] | None = None
    continues_ingest: bool = False


Q = TypeVar("Q")


class Lane(Generic[Q]):
    """A bounded queue that knows about how long one item takes. Guarded by the scheduler."""

    def __init__(self, name: str, *, max_queued: int) -> None:
        self.name = name
        self.max_queued = max_queued
        self.items: deque[Q] = deque()
        self._seconds_per_item = 0.0

    def check_room(self, amount: int, *, waiting: int) -> None:
        """
        Raises:
            Overloaded: `amount` more would not fit beside the `waiting` ones.
        """
        if waiting + amount > self.max_queued:
            expected_s = max(MIN_RETRY_AFTER_S, waiting * self._seconds_per_item)
            raise Overloaded(
                lane=self.name,
                max_queued=self.max_queued,
                retry_after_s=min(MAX_RETRY_AFTER_S, expected_s),
            )

    def note_pace(self, *, num_items: int, seconds: float) -> None:
        """Learn from a finished batch, for `retry_after_s`."""
        newest = seconds / max(1, num_items)
        self._seconds_per_item += PACE_WEIGHT * (newest - self._seconds_per_item)

    def pop(self, amount: int) -> tuple[Q, ...]:
        """The first items, at most `amount`."""
        return tuple(self.items.popleft() for _ in range(min(amount, len(self.items))))

    def discard(self, ticket: Ticket[Any]) -> None:
        """Forget whatever is queued of `ticket`."""
        kept = [item for item in self.items if _ticket_of(item) is not ticket]
        self.items.clear()
        self.items.extend(kept)


def _ticket_of(item: object) -> object:
    return item.ticket if isinstance(item, DocumentItem) else item
