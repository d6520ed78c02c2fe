"""Room in the bank for what is learned: refused before it is written, or made after it is durable.

Made after, so that nothing is removed for a document that was then not written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from mac_core.engine.learning import Learning
from mac_core.engine.tickets import DocumentItem, DocumentsTicket
from mac_core.errors import InvalidInput, StoreError
from mac_core.memory.budget import Budget
from mac_core.memory.records import document_id
from mac_core.types import EngineObserver

Delete = Callable[[str, Sequence[str]], object]


class Room:
    """Keeps namespaces within their budget. Engine thread only."""

    def __init__(
        self, budget: Budget, *, policy: str, delete: Delete, observer: EngineObserver
    ) -> None:
        """`delete`: removes documents of a namespace, durably and visibly."""
        self._budget = budget
        self._policy = policy
        self._delete = delete
        self._observer = observer
        # Ids by request: none of a request's documents makes room for another of them.
        self._together: dict[DocumentsTicket, frozenset[str]] = {}

    def begin(self, items: Sequence[DocumentItem]) -> None:
        """These documents come next; a long request comes in several parts."""
        if self._budget.is_limited:
            tickets = dict.fromkeys(item.ticket for item in items)
            self._together = {
                ticket: self._together.get(ticket) or _ids_of(ticket) for ticket in tickets
            }

    def admit(self, group: Sequence[Learning], *, now: float) -> None:
        """Give BankFull to those learned documents of a group that must not be written."""
        learned = [learning for learning in group if learning.error is None]
        if not learned or not self._budget.is_limited:
            return
        namespace = learned[0].item.ticket.namespace
        records = [learning.to_record(now=now) for learning in learned]
        refused = self._budget.admit(namespace, records, protected=self._protected())
        for learning in learned:
            learning.error = refused.get(learning.id)
        self._count("refused_full", len(refused))

    def make(self, namespace: str) -> None:
        """Remove what is too much; when the store fails, the next write tries again."""
        if not self._budget.is_limited:
            return
        victims = self._budget.victims(namespace, protected=self._protected())
        if victims:
            with suppress(StoreError):  # counted where it was raised
                self._delete(namespace, victims)
                self._count(f"evicted_{self._policy}", len(victims))

    def removed(self, namespace: str, ids: Sequence[str]) -> None:
        self._budget.forget(namespace, ids)

    def _protected(self) -> frozenset[str]:
        return frozenset[str]().union(*self._together.values())

    def _count(self, operation: str, amount: int) -> None:
        if amount:
            self._observer.count_documents(operation, amount)


def _ids_of(ticket: DocumentsTicket) -> frozenset[str]:
    """The ids that the request's documents have or would get."""
    ids = set()
    for document in ticket.documents:
        with suppress(InvalidInput):  # it will be refused for its text
            ids.add(document.id or document_id(ticket.namespace, document.text))
    return frozenset(ids)
