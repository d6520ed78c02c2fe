"""Who is served next: bounded lanes for questions, documents and quick readings.

Submitting never blocks: a full lane refuses at once. Knows no model and no store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition
from typing import Any

from mac_core.engine.lanes import DocumentWork, Lane, Turn
from mac_core.engine.tickets import (
    DocumentItem,
    DocumentsTicket,
    QuestionTicket,
    ReadTicket,
    RemovalTicket,
    Ticket,
    WriteTicket,
)
from mac_core.errors import InvalidInput, NotReady

INFINITY = float("inf")
Behind = Callable[[], Exception | None]  # what a question still waits for; None: nothing
MAX_WAIT_S = 3600.0


class Scheduler:
    """Bounded lanes in front of one engine thread.

    `submit_*`, `drain`, `stop`, counts: any thread. `take`, `park`, `unpark`: engine thread only.
    """

    def __init__(
        self,
        *,
        max_queued_questions: int,
        max_queued_documents: int,
        max_batch_questions: int,
        max_batch_documents: int,
        clock: Callable[[], float] = time.monotonic,
        observe_late: Callable[[float], None] = lambda waited_s: None,
    ) -> None:
        """`observe_late`: told how long a question waited that ends without being taken."""
        self.reads = Lane[ReadTicket[Any]]("reads", max_queued=max_queued_questions)
        self.questions = Lane[QuestionTicket]("questions", max_queued=max_queued_questions)
        self.documents = Lane[DocumentWork]("documents", max_queued=max_queued_documents)
        self._max_batch_questions = max_batch_questions
        self._max_batch_documents = max_batch_documents
        self._clock = clock
        self._observe_late = observe_late
        self._changed = Condition()
        self._parked: dict[QuestionTicket, Behind] = {}
        self._open: set[Ticket[Any]] = set()  # submitted, no outcome yet
        self._refusal: str | None = "the engine is starting"
        self._is_documents_turn = False
        self._has_read = False  # in the last turn
        self.is_draining = False
        self.is_stopping = False
        self.is_waiting = False  # the engine thread has nothing to do

    # Any thread.

    def submit_question(self, ticket: QuestionTicket) -> None:
        """
        Raises:
            NotReady: starting, draining or stopped.
            Overloaded: the lane is full.
        """
        with self._changed:
            self._check_open()
            waiting = len(self.questions.items) + len(self._parked)
            self.questions.check_room(1, waiting=waiting)
            self.questions.items.append(ticket)
            self._admit(ticket)

    def submit_documents(self, ticket: DocumentsTicket) -> None:
        """Queue each document of the ticket; all or none.

        Raises:
            NotReady: starting, draining or stopped.
            Overloaded: the lane has no room for all of them.
            InvalidInput: more documents than the lane ever holds.
        """
        amount = len(ticket.documents)
        with self._changed:
            self._check_open()
            if amount > self.documents.max_queued:
                raise InvalidInput(
                    f"{amount} documents in one call, the queue holds {self.documents.max_queued}"
                )
            self.documents.check_room(amount, waiting=len(self.documents.items))
            self.documents.items.extend(DocumentItem(ticket, i) for i in range(amount))
            self._admit(ticket)

    def submit_removal(self, ticket: RemovalTicket | WriteTicket[Any]) -> None:
        """Queue behind the documents that came before. Raises as `submit_question`."""
        with self._changed:
            self._check_open()
            self.documents.check_room(1, waiting=len(self.documents.items))
            self.documents.items.append(ticket)
            self._admit(ticket)

    def submit_read(self, ticket: ReadTicket[Any]) -> None:
        """Queue ahead of all batches. Raises as `submit_question`."""
        with self._changed:
            self._check_open()
            self.reads.check_room(1, waiting=len(self.reads.items))
            self.reads.items.append(ticket)
            self._admit(ticket)

    def open(self) -> None:
        """Accept work, unless draining has begun."""
        with self._changed:
            if not self.is_draining:
                self._refusal = None

    def drain(self, refusal: str) -> None:
        """Refuse new work from now on; `take` ends when nothing is left."""
        with self._changed:
            if not self.is_stopping:  # why it stopped is the better reason
                self._refusal = refusal
            self.is_draining = True
            self._changed.notify_all()

    def stop(self, refusal: str) -> None:
        """Refuse new work; `take` ends at once, whatever is queued."""
        with self._changed:
            self.drain(refusal)
            self.is_stopping = True

    def fail_open(self, error: BaseException) -> None:
        """Give everybody who still waits, in a queue or in a batch, the same outcome."""
        with self._changed:
            open_tickets = list(self._open)
            for lane in (self.reads, self.questions, self.documents):
                lane.items.clear()
            self._parked.clear()
        for ticket in open_tickets:
            ticket.fail(error)

    def count_questions(self) -> int:
        with self._changed:
            return len(self.questions.items) + len(self._parked)

    def count_documents(self) -> int:
        with self._changed:
            return len(self.documents.items)

    # Engine thread.

    def take(self, *, is_ingesting: bool = False, wake_after_s: float | None = None) -> Turn | None:
        """The next work; waits until there is some. None: drained or stopped, nothing follows.

        Readings go first, but not twice while others wait. Questions and documents alternate while
        both wait, so that neither starves: a batch of questions, then one step of documents.
        Questions whose deadline passed in the queue get DeadlineExceeded here.

        Args:
            is_ingesting: an unfinished ingest is the documents' next step.
            wake_after_s: return an empty turn after that long without work.
        """
        wake_at = self._clock() + (INFINITY if wake_after_s is None else wake_after_s)
        while True:
            with self._changed:
                late = self._take_late(is_ingesting)
                if not late:
                    turn = None if self.is_stopping else self._next_turn(is_ingesting)
                    if turn is not None or self.is_stopping or self.is_draining:
                        return turn
                    if self._clock() >= wake_at:
                        return Turn()
                    self._wait(wake_at)
            for ticket, error in late:
                self._observe_late(self._clock() - ticket.submitted_at)
                ticket.fail(error)

    def park(self, ticket: QuestionTicket, behind: Behind) -> None:
        """Set a question aside until it waits for nothing any more.

        At its deadline, or when nothing can follow, it gets the error that `behind` gives then.
        """
        with self._changed:
            if not ticket.is_cancelled:
                self._parked[ticket] = behind

    def unpark(self) -> None:
        """Something was written: put the questions first that waited for it, and no others."""
        with self._changed:
            freed = [ticket for ticket, behind in self._parked.items() if behind() is None]
            for ticket in freed:
                del self._parked[ticket]
            self.questions.items.extendleft(reversed(freed))

    # Inside the lock.

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise NotReady(self._refusal)

    def _admit(self, ticket: Ticket[Any]) -> None:
        self._open.add(ticket)
        ticket.future.add_done_callback(lambda _: self._forget(ticket))
        self._changed.notify_all()

    def _forget(self, ticket: Ticket[Any]) -> None:
        """A future is done: drop the ticket and, if it was cancelled, what is queued of it."""
        with self._changed:
            self._open.discard(ticket)
            if not ticket.is_cancelled:
                return
            for lane in (self.reads, self.questions, self.documents):
                lane.discard(ticket)
            if isinstance(ticket, QuestionTicket):
                self._parked.pop(ticket, None)
            self._changed.notify_all()
        ticket.drop()

    def _take_late(self, is_ingesting: bool) -> list[tuple[QuestionTicket, Exception]]:
        """Questions that can no longer be answered in time, with the error of each."""
        now = self._clock()
        late: list[tuple[QuestionTicket, Exception]] = [
            (ticket, ticket.deadline_exceeded("in the queue"))
            for ticket in self.questions.items
            if ticket.has_expired(now)
        ]
        for ticket, _ in late:
            self.questions.items.remove(ticket)
        nothing_follows = self.is_draining and not is_ingesting and not self.documents.items
        in_vain = [t for t in self._parked if nothing_follows or t.has_expired(now)]
        for ticket in in_vain:
            error = self._parked.pop(ticket)() or ticket.deadline_exceeded("in the queue")
            late.append((ticket, error))
        return late

    def _next_turn(self, is_ingesting: bool) -> Turn | None:
        has_documents = is_ingesting or bool(self.documents.items)
        others_wait = has_documents or bool(self.questions.items)
        if self.reads.items and not (self._has_read and others_wait):
            self._has_read = True
            return Turn(reads=self.reads.pop(len(self.reads.items)))
        self._has_read = False
        if self.questions.items and not (self._is_documents_turn and has_documents):
            self._is_documents_turn = True
            return Turn(questions=self.questions.pop(self._max_batch_questions))
        self._is_documents_turn = False
        if is_ingesting:
            return Turn(continues_ingest=True)
        return self._next_documents()

    def _next_documents(self) -> Turn | None:
        """A removal, another write, or neighbouring documents of one namespace."""
        taken: list[DocumentItem] = []
        items = self.documents.items
        while items and len(taken) < self._max_batch_documents:
            item = items[0]
            if not isinstance(item, DocumentItem):
                if taken:
                    break
                items.popleft()
                return Turn(write=item) if isinstance(item, WriteTicket) else Turn(removal=item)
            if taken and item.ticket.namespace != taken[0].ticket.namespace:
                break
            taken.append(item)
            items.popleft()
        return Turn(documents=tuple(taken)) if taken else None

    def _wait(self, wake_at: float) -> None:
        until = min([wake_at, *(ticket.deadline for ticket in self._parked)])
        self.is_waiting = True
        # A deadline of centuries is more than a lock can wait for; waking up early does no harm.
        self._changed.wait(min(MAX_WAIT_S, max(0.0, until - self._clock())))
        self.is_waiting = False
