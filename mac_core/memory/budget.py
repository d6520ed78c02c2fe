"""What a namespace may hold, and who goes when it is more. Decides; removes nothing itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mac_core.config import BudgetConfig
from mac_core.errors import BankFull
from mac_core.memory.bank import BankEntry, BankView, MemoryBank
from mac_core.memory.records import DocumentRecord
from mac_core.memory.usage import UsageCounter
from mac_core.memory.views import GONE


@dataclass(frozen=True, slots=True)
class Size:
    """Documents and bytes of modulations."""

    documents: int = 0
    num_bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.documents + other.documents, self.num_bytes + other.num_bytes)

    def __sub__(self, other: Size) -> Size:
        return Size(self.documents - other.documents, self.num_bytes - other.num_bytes)


class Budget:
    """The same limits for every namespace. Engine thread only.

    Counts what this process's bank holds: servers that share a store and write at the same moment
    can go over together, and come back with the next write.
    """

    def __init__(self, config: BudgetConfig, bank: MemoryBank, usage: UsageCounter) -> None:
        self._config = config
        self._bank = bank
        self._usage = usage

    @property
    def is_limited(self) -> bool:
        return self._config.max_documents is not None or self._config.max_bytes is not None

    def admit(
        self, namespace: str, records: Sequence[DocumentRecord], *, protected: Collection[str]
    ) -> dict[str, BankFull]:
        """Which of `records`, in their order, must not be written, and why.

        Refusing: what does not fit. Evicting: what would not fit even without every document that
        may go: all but the pinned ones, `protected` and `records` themselves.
        """
        refused: dict[str, BankFull] = {}
        if not self.is_limited:
            return refused
        held = self._held(namespace, protected)
        for record in records:
            before = self._size_of(namespace, record.id, protected)
            after = held - before + size_of_record(record)
            error = self._over(namespace, after, before=held)
            if error is None:
                held = after
            else:
                refused[record.id] = error
        return refused

    def victims(self, namespace: str, *, protected: Collection[str]) -> list[str]:
        """Documents to remove so that the namespace is within its limits, in order of going."""
        view = self._bank.view(namespace)
        excess = self._excess(Size(view.num_documents, view.num_bytes))
        if self._config.policy == "refuse" or excess == Size():
            return []
        victims: list[str] = []
        for name, size in self._leaving(view, protected):
            if excess.documents <= 0 and excess.num_bytes <= 0:
                break
            victims.append(name)
            excess -= size
        return victims

    def forget(self, namespace: str, removed_ids: Collection[str]) -> None:
        """These documents are gone; one that comes again with such an id begins anew."""
        self._usage.forget(namespace, removed_ids)

    def _held(self, namespace: str, protected: Collection[str]) -> Size:
        """What is there and will stay."""
        view = self._bank.view(namespace)
        if self._config.policy == "refuse":
            return Size(view.num_documents, view.num_bytes)
        staying = Size(view.num_pinned_documents, view.num_pinned_bytes)
        for name in protected:
            entries = self._bank.entries_of(namespace, name)
            if entries and not entries[0].pinned:
                staying += size_of(entries)
        return staying

    def _size_of(self, namespace: str, name: str, protected: Collection[str]) -> Size:
        """What of `_held` the document's present version is."""
        entries = self._bank.entries_of(namespace, name)
        is_held = self._config.policy == "refuse" or name in protected
        return size_of(entries) if entries and (is_held or entries[0].pinned) else Size()

    def _over(self, namespace: str, after: Size, *, before: Size) -> BankFull | None:
        """The error of a write that goes over a limit and takes more than is there."""
        config = self._config
        for what, size, was, limit in (
            ("documents", after.documents, before.documents, config.max_documents),
            ("bytes", after.num_bytes, before.num_bytes, config.max_bytes),
        ):
            if limit is not None and size > limit and size > was:
                return BankFull(namespace=namespace, what=what, size=size, limit=limit)
        return None

    def _excess(self, size: Size) -> Size:
        config = self._config
        max_documents = config.max_documents or size.documents
        max_bytes = config.max_bytes or size.num_bytes
        return Size(max(0, size.documents - max_documents), max(0, size.num_bytes - max_bytes))

    def _leaving(self, view: BankView, protected: Collection[str]) -> Iterator[tuple[str, Size]]:
        """Documents that may go, the first to go first."""
        used: Mapping[str, float] = {}
        if self._config.policy == "least_used":
            used = self._usage.of(view.namespace)
        for name, size in _in_order(view):
            if name not in used and name not in protected:
                yield name, size
        # All others have been used: the least of them first, of equals the older.
        rest = [(name, size) for name, size in _in_order(view) if name in used] if used else []
        rest.sort(key=lambda pair: used[pair[0]])
        yield from (pair for pair in rest if pair[0] not in protected)


def size_of_record(record: DocumentRecord) -> Size:
    return Size(1, sum(part.stored.num_bytes for part in record.chunks))


def size_of(entries: Sequence[BankEntry]) -> Size:
    """Of one document's chunks."""
    return Size(1, sum(entry.stored.num_bytes for entry in entries))


def _in_order(view: BankView) -> Iterator[tuple[str, Size]]:
    """Documents that are not pinned, with their sizes, in order of writing."""
    name, num_bytes = "", 0
    for entry in view.entries:
        if entry is GONE or entry.pinned:
            continue
        if entry.document_id != name:
            if name:
                yield name, Size(1, num_bytes)
            name, num_bytes = entry.document_id, 0
        num_bytes += entry.stored.num_bytes
    if name:
        yield name, Size(1, num_bytes)
