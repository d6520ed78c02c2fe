"""Adding and removing documents: durable in the store first, visible in the bank second.

The bank itself is the mirror's to write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter

from mac_core.config import EngineConfig
from mac_core.engine.intake import DocumentOutcomes, Intake, as_store_error
from mac_core.engine.learning import Amortizer, Learning
from mac_core.engine.mirror import Mirror
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.room import Room
from mac_core.engine.tickets import DocumentItem, RemovalTicket
from mac_core.engine.validation import check_name
from mac_core.errors import InvalidInput, MacError, StoreError
from mac_core.memory.bank import MemoryBank
from mac_core.memory.budget import Budget
from mac_core.memory.codebook_records import is_own_id
from mac_core.memory.store import Store
from mac_core.types import EngineObserver, MetadataValue, RemoveResult

MIN_EXPIRY_INTERVAL_S = 1.0
LISTED_AT_ONCE = 1000


class Ingest:
    """The only writer of the store in this process. Engine thread only."""

    def __init__(
        self,
        *,
        model: AnsweringModel,
        store: Store,
        bank: MemoryBank,
        mirror: Mirror,
        budget: Budget,
        config: EngineConfig,
        observer: EngineObserver,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: monotonic seconds; `now`: seconds since the epoch."""
        self._store = store
        self._mirror = mirror
        self._observer = observer
        self._clock = clock
        self._now = now
        self._room = Room(
            budget, policy=config.budget.policy, delete=self._delete, observer=observer
        )
        self._outcomes = DocumentOutcomes(bank, observer)
        self._intake = Intake(
            model=model,
            store=store,
            bank=bank,
            config=config,
            outcomes=self._outcomes,
            observer=observer,
            clock=clock,
        )
        self._amortizer = Amortizer(
            model,
            max_batch_chunks=config.max_batch_chunks,
            observer=observer,
            bits=config.modulation_bits,
        )
        self._not_before = float("-inf")  # of the next expiry, seconds since the epoch

    def add(self, items: Sequence[DocumentItem]) -> Iterator[None]:
        """Learn documents of one namespace, in order; yields between forward passes.

        Documents share a transaction as long as their chunks fit one pass and no id repeats. No
        other write of this process may come between the steps. Each document's result reaches its
        ticket.
        """
        self._expire_now()
        self._room.begin(items)
        groups = self._intake.groups(items, max_chunks=lambda: self._amortizer.cap.value)
        for place, group in enumerate(groups):
            if place:
                yield
            yield from self._learn(group)

    def remove(self, ticket: RemovalTicket) -> None:
        """Remove what is there of the ticket's ids."""
        try:
            check_name(ticket.namespace, what="the namespace")
            ids = [name for name in ticket.ids if not is_own_id(name)]
            removed, version = self._delete(ticket.namespace, ids)
        except MacError as error:
            ticket.fail(error)
            return
        self._observer.count_documents("removed", len(removed))
        ticket.resolve(RemoveResult(removed_ids=removed, bank_version=version))

    def remove_matching(self, namespace: str, wanted: Mapping[str, MetadataValue]) -> RemoveResult:
        """Remove every document that has this metadata, in one write.

        Raises:
            InvalidInput: no name of a namespace.
            StoreError: nothing was removed; or Redis did not say in time whether it was. Sent
                again, the same removal does what is left of it.
        """
        check_name(namespace, what="the namespace")
        removed, version = self._delete(namespace, self._matching(namespace, wanted))
        self._observer.count_documents("removed", len(removed))
        return RemoveResult(removed_ids=removed, bank_version=version)

    def _matching(self, namespace: str, wanted: Mapping[str, MetadataValue]) -> list[str]:
        ids: list[str] = []
        cursor: str | None = None
        try:
            while True:
                page = self._store.list(
                    namespace, limit=LISTED_AT_ONCE, cursor=cursor, filter=wanted
                )
                ids += [info.id for info in page.documents if not is_own_id(info.id)]
                cursor = page.next_cursor
                if cursor is None:
                    return ids
        except Exception as error:
            self._observer.count_store_error("read")
            raise as_store_error(error) from error

    def seconds_to_expiry(self) -> float | None:
        """How long until `expire` has something to do; None: nothing expires."""
        if self._mirror.next_expiry == float("inf"):
            return None
        return max(0.0, max(self._mirror.next_expiry, self._not_before) - self._now())

    def expire(self) -> bool:
        """Remove expired documents, if any is due and the last time was a second ago.

        Selection hides them in any case; this gives their space back.
        """
        if self._now() < max(self._mirror.next_expiry, self._not_before):
            return False
        self._expire_now()
        return True

    def _expire_now(self) -> None:
        now = self._now()
        if now < self._mirror.next_expiry:
            return
        self._not_before = now + MIN_EXPIRY_INTERVAL_S
        with suppress(StoreError):  # counted; tried again later
            due = sorted(self._expired(now), key=itemgetter(0))
            for namespace, pairs in groupby(due, key=itemgetter(0)):
                names = [name for _, name in pairs]
                removed, _ = self._delete(namespace, names, expired_by=now)
                self._observer.count_documents("expired", len(removed))
            self._mirror.find_next_expiry()

    def _expired(self, now: float) -> Sequence[tuple[str, str]]:
        try:
            return self._store.expired(now)
        except Exception as error:
            self._observer.count_store_error("read")
            raise as_store_error(error) from error

    def _delete(
        self, namespace: str, ids: Sequence[str], *, expired_by: float | None = None
    ) -> tuple[tuple[str, ...], int]:
        try:
            removed, version = self._store.delete(namespace, ids, expired_by=expired_by)
        except Exception as error:
            self._observer.count_store_error("delete")
            raise as_store_error(error) from error
        if removed:
            self._mirror.wrote(namespace, version, removed, (), ())
            self._room.removed(namespace, removed)
        return removed, version

    # What is written.

    def _learn(self, group: list[Learning]) -> Iterator[None]:
        """Amortize and commit one group, yielding between forward passes."""
        spent_s = 0.0
        waiting = [(learning, chunk) for learning in group for chunk in learning.chunks]
        while waiting:
            began = self._clock()
            self._give_up_late(group)
            part, waiting = (
                waiting[: self._amortizer.cap.value],
                waiting[self._amortizer.cap.value :],
            )
            self._amortizer.amortize(part)
            spent_s += self._clock() - began
            if waiting:
                yield
        began = self._clock()
        self._commit(group)
        self._observer.observe_phase("ingest", spent_s + self._clock() - began)

    def _give_up_late(self, group: Sequence[Learning]) -> None:
        """Stop learning what nobody waits for any more."""
        for learning in group:
            ticket = learning.item.ticket
            if learning.error is None and (
                ticket.is_cancelled or ticket.has_expired(self._clock())
            ):
                learning.error = ticket.deadline_exceeded("while the document was learned")

    def _commit(self, group: Sequence[Learning]) -> None:
        """Make the learned documents of the group durable, then visible, then answer for them."""
        self._room.admit(group, now=self._now())
        learned = [learning for learning in group if learning.error is None]
        for learning in group:
            if learning.error is not None:
                self._outcomes.failed(learning.item, learning.error, name=learning.id)
        if not learned:
            return
        namespace, now = learned[0].item.ticket.namespace, self._now()
        records = [learning.to_record(now=now) for learning in learned]
        try:
            version = self._store.put(namespace, records)
        except Exception as error:
            self._put_failed(learned, error)
            return
        keys = [learning.aggregation_keys for learning in learned]
        self._mirror.wrote(namespace, version, (), records, keys)
        self._room.make(namespace)
        for learning, record in zip(learned, records, strict=True):
            self._outcomes.done(
                learning.item,
                learning.id,
                "inserted" if learning.is_new else "updated",
                num_chunks=len(record.chunks),
                num_tokens=record.num_tokens,
                version=version,
            )

    def _put_failed(self, learned: Sequence[Learning], error: Exception) -> None:
        """Nothing was written: one document's own fault fails it alone, the store's fails all."""
        if isinstance(error, InvalidInput) and len(learned) > 1:
            for learning in learned:
                self._commit([learning])
            return
        error = as_store_error(error)
        if isinstance(error, StoreError):
            self._observer.count_store_error("put")
        for learning in learned:
            self._outcomes.failed(learning.item, error, name=learning.id)
