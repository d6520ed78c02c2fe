"""One piece of work and the future of whoever waits for it: settled once, by whoever comes first.

A future stays cancellable until its outcome is there, so that a client that goes away frees its
row in the middle of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from mac_core.errors import DeadlineExceeded
from mac_core.types import Answer, Document, DocumentResult, Question, RemoveResult

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Ticket(Generic[T]):
    """Work with a deadline. Any thread may settle it; the first outcome stays."""

    submitted_at: float  # monotonic seconds
    timeout_ms: float | None = None  # None: no deadline
    future: Future[T] = field(default_factory=Future, init=False)
    _is_settled: bool = field(default=False, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    @property
    def deadline(self) -> float:
        """Monotonic seconds; infinity without one."""
        if self.timeout_ms is None:
            return float("inf")
        return self.submitted_at + self.timeout_ms / 1000

    @property
    def is_cancelled(self) -> bool:
        return self.future.cancelled()

    def has_expired(self, now: float) -> bool:
        return now >= self.deadline

    def deadline_exceeded(self, where: str) -> DeadlineExceeded:
        return DeadlineExceeded(timeout_ms=self.timeout_ms or 0.0, where=where)

    def resolve(self, value: T) -> bool:
        """Give the waiter `value`; False when it was settled or cancelled before."""
        if not self._claim():
            return False
        self.future.set_result(value)
        return True

    def fail(self, error: BaseException) -> bool:
        """Give the waiter `error`; False when it was settled or cancelled before."""
        if not self._claim():
            return False
        self.future.set_exception(error)
        return True

    def drop(self) -> None:
        """Tell whoever waits on a cancelled future that nothing more will come."""
        self._claim()

    def _claim(self) -> bool:
        with self._lock:
            if self._is_settled:
                return False
            self._is_settled = True
        return self.future.set_running_or_notify_cancel()


@dataclass(kw_only=True, eq=False)
class QuestionTicket(Ticket[Answer]):
    """One question in the queue or in a batch."""

    question: Question
    taken_at: float = 0.0  # monotonic seconds, when it left the queue


@dataclass(kw_only=True, eq=False)
class DocumentsTicket(Ticket[list[DocumentResult]]):
    """The documents of one request; settled with the outcome of the last of them."""

    namespace: str
    documents: Sequence[Document]
    _results: dict[int, DocumentResult] = field(default_factory=dict, init=False)

    def record(self, index: int, result: DocumentResult) -> None:
        """Keep what became of document `index`. Engine thread only."""
        self._results[index] = result
        if len(self._results) == len(self.documents):
            self._finish([self._results[i] for i in range(len(self.documents))])

    def _finish(self, results: list[DocumentResult]) -> None:
        late = [result.error for result in results if isinstance(result.error, DeadlineExceeded)]
        if late and len(late) == len(results):  # nothing was begun: the request was too late
            self.fail(late[0])
        else:
            self.resolve(results)


@dataclass(frozen=True, slots=True, eq=False)
class DocumentItem:
    """One document in the queue."""

    ticket: DocumentsTicket
    index: int

    @property
    def document(self) -> Document:
        return self.ticket.documents[self.index]


@dataclass(kw_only=True, eq=False)
class RemovalTicket(Ticket[RemoveResult]):
    """Documents to remove, in order with those to add."""

    namespace: str
    ids: Sequence[str]


@dataclass(kw_only=True, eq=False)
class WriteTicket(Ticket[T]):
    """A write that is no list of documents, in order with those: of a namespace as a whole."""

    write: Callable[[], T]


@dataclass(kw_only=True, eq=False)
class ReadTicket(Ticket[T]):
    """A quick reading of the store, on the engine thread because the store is its own."""

    read: Callable[[], T]
