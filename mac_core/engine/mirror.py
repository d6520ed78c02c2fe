"""The bank as a mirror of the store: filled at start, then kept equal to what is written.

Knows who wrote: this process, whose documents are at hand, or another, whose are fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from mac_core.engine.ports import AnsweringModel
from mac_core.errors import CorruptRecord, StoreError
from mac_core.memory.bank import MemoryBank
from mac_core.memory.codebook_records import Codebooks
from mac_core.memory.records import DocumentRecord
from mac_core.memory.shared import NOTHING, ChangeFeed, Delta, FetchedRecord, Head, SharedStore
from mac_core.memory.store import Store
from mac_core.networks.aggregation import AggregationKeys
from mac_core.types import EngineObserver

logger = logging.getLogger(__name__)

Keys = Sequence[AggregationKeys]  # of one document, by chunk
OnEngine = Callable[[Callable[[], bool]], object]

FETCHED_AT_ONCE = 16  # documents; each is about 0.1 MB a chunk
LOADED_AT_ONCE = 1024  # documents that exist twice while the bank is filled
MAX_ROUNDS = 4  # of looking again at what was written meanwhile


class Mirror:
    """The only writer of the bank, for a store that only this process writes to. Engine thread."""

    def __init__(
        self, *, model: AnsweringModel, store: Store, bank: MemoryBank, observer: EngineObserver
    ) -> None:
        self._model = model
        self._observer = observer
        self._left_out: dict[str, set[str]] = {}  # ids of corrupt records, by namespace
        self._store = store
        self._bank = bank
        self._codebooks = Codebooks(store)
        self.next_expiry = float("inf")  # seconds since the epoch

    @property
    def num_corrupt(self) -> int:
        """Records that were met, and were not written anew or removed since. Any thread."""
        return sum(len(ids) for ids in list(self._left_out.values()))

    def load(self) -> None:
        """Read every namespace of the store into the bank; a corrupt record is left out.

        Raises:
            StoreError: the store cannot be read; ForeignRecord names the way out.
        """
        for info in self._store.namespaces():
            self.reload(info.namespace)

    def reload(self, namespace: str) -> None:
        """Read one namespace anew, in place of what the bank has of it. Raises as `load`."""
        self._left_out.pop(namespace, None)
        records = self._store.scan(
            namespace, skip=lambda error: self.note_corrupt(namespace, error.document_id)
        )
        version = self._store.version(namespace)
        held = {entry.document_id for entry in self._bank.view(namespace).entries}
        self._bank.apply(namespace, version, list(held), (), is_part=True)
        bound = self._bound(namespace, records)
        while part := list(islice(bound, LOADED_AT_ONCE)):
            keys = [self.keys_of(record) for record in part]
            self._bank.apply(namespace, version, (), part, keys, is_part=True)
        self._bank.apply(namespace, version, (), ())
        self.find_next_expiry()

    def _bound(self, namespace: str, records: Iterable[DocumentRecord]) -> Iterator[DocumentRecord]:
        """Those that can be unpacked: one whose codebook is corrupt is as corrupt itself."""
        left_out = list[str]()
        lost = set[str]()  # codebooks; looked for once a reading
        for record in records:
            wanted = {part.stored.encoding.codebook_id for part in record.chunks}
            if lost & wanted:
                left_out.append(record.id)
                continue
            try:
                bound = self._codebooks.bound(record)
            except CorruptRecord:
                lost |= {name for name in wanted if name is not None}
                left_out.append(record.id)
                continue
            yield bound
        if left_out:
            self._note_lost(namespace, left_out)

    def _note_lost(self, namespace: str, ids: Sequence[str]) -> None:
        self._left_out.setdefault(namespace, set()).update(ids)
        self._observer.count_store_error("corrupt")
        logger.error(
            "%d documents of namespace %r are left out because their codebook cannot be read; "
            "`mac bank reindex --all` makes them anew",
            *(len(ids), namespace),
        )

    def note_corrupt(self, namespace: str, document_id: str) -> None:
        """Go on without a record. Ids are not logged: `mac bank verify` says which one it is."""
        self._left_out.setdefault(namespace, set()).add(document_id)
        self._observer.count_store_error("corrupt")
        logger.error("a record is corrupt and left out: `mac bank verify` names it")

    def wrote(
        self,
        namespace: str,
        version: int,
        removed_ids: Sequence[str],
        records: Sequence[DocumentRecord],
        keys: Sequence[Keys],
    ) -> None:
        """Publish what this process has just made durable; `keys` by record."""
        self._bank.apply(namespace, version, removed_ids, records, keys)
        if namespace in self._left_out:
            self._left_out[namespace].difference_update(removed_ids, [r.id for r in records])
        self._expect_expiry(records)

    def dropped(self, namespace: str, version: int) -> None:
        """Publish that this process has just deleted a namespace."""
        held = {entry.document_id for entry in self._bank.view(namespace).entries}
        self.wrote(namespace, version, [*held, *self._left_out.get(namespace, ())], (), ())

    def keys_of(self, record: DocumentRecord) -> list[AggregationKeys]:
        return [self._model.aggregation_keys(part.stored.unpack()) for part in record.chunks]

    def find_next_expiry(self) -> None:
        """Look at every document; after some have expired."""
        views = [self._bank.view(namespace) for namespace in self._bank.namespaces()]
        self.next_expiry = min([view.next_expiry for view in views], default=float("inf"))

    def _expect_expiry(self, records: Sequence[DocumentRecord]) -> None:
        times = [record.expires_at for record in records if record.expires_at is not None]
        self.next_expiry = min([self.next_expiry, *times])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Staged:
    """A document of another writer, ready to be published."""

    version: int
    mark: str
    record: DocumentRecord
    keys: Keys


class SharedMirror(Mirror):
    """The same for a store that others write to as well.

    Engine thread only, but for `head`, `versions` and `marks`. A view has the store's version only
    if it has everything up to it: what others wrote in between is fetched first.
    """

    def __init__(
        self,
        *,
        model: AnsweringModel,
        store: SharedStore,
        bank: MemoryBank,
        observer: EngineObserver,
    ) -> None:
        super().__init__(model=model, store=store, bank=bank, observer=observer)
        self._shared = store
        self._heads: dict[str, Head] = {}
        self._marks: dict[str, dict[str, str]] = {}

    def head(self, namespace: str) -> Head:
        return self._heads.get(namespace, NOTHING)

    def versions(self) -> dict[str, int]:
        return {namespace: head.version for namespace, head in dict(self._heads).items()}

    def marks(self, namespace: str) -> Mapping[str, str]:
        """Of the documents held, by id; empty for one that is left out as corrupt."""
        left_out = self._left_out.get(namespace, set()).copy()
        return dict.fromkeys(left_out, "") | self._marks.get(namespace, {})

    def load(self) -> None:
        for namespace in self._shared.feed.heads():
            self._catch_up(namespace)

    def reload(self, namespace: str) -> None:
        """As every other change: by following the stream."""
        self._catch_up(namespace)

    def wrote(
        self,
        namespace: str,
        version: int,
        removed_ids: Sequence[str],
        records: Sequence[DocumentRecord],
        keys: Sequence[Keys],
    ) -> None:
        """As for one's own store; after others' writes which are not here yet, those come first.

        When they cannot be fetched the follower will, and the bank gets to `version` later.
        """
        write = self._shared.last_write
        if write.previous_mark == self.head(namespace).mark:
            super().wrote(namespace, version, removed_ids, records, keys)
            self._advance(namespace, write.head, removed_ids)
            marks = self._marks[namespace]
            marks.update((record.id, write.head.mark) for record in records)
            return
        head = write.head
        own = {
            record.id: Staged(version=version, mark=head.mark, record=record, keys=made)
            for record, made in zip(records, keys, strict=True)
        }
        try:
            self._catch_up(namespace, own)
        except StoreError:
            self._observer.count_store_error("follow")

    def stage(
        self, namespace: str, fetched: Sequence[FetchedRecord], staged: dict[str, Staged]
    ) -> None:
        """Make tensors of what came over the wire; a corrupt record is left out.

        Raises:
            StoreError: a record cannot be used; ForeignRecord says why.
        """
        for item in fetched:
            try:
                record = item.decode()
            except CorruptRecord:
                self.note_corrupt(namespace, item.id)
                continue
            try:
                record = self._codebooks.bound(record)
            except CorruptRecord:
                self._note_lost(namespace, [item.id])
                continue
            staged[item.id] = Staged(
                version=item.version, mark=item.mark, record=record, keys=self.keys_of(record)
            )

    def publish(self, namespace: str, delta: Delta, staged: Mapping[str, Staged]) -> bool:
        """Bring the bank to the delta's head; False when it is no longer where the delta begins."""
        if self.head(namespace) != delta.after:
            return False
        added = [staged[name] for name in delta.written if name in staged]
        missing = delta.written.keys() - staged.keys()  # corrupt, or gone since
        corrupt = missing & self._left_out.get(namespace, set())
        removed = {*delta.removed_ids, *missing}
        if delta.is_reload:
            removed |= self.marks(namespace).keys()
        records = [item.record for item in added]
        keys = [item.keys for item in added]
        super().wrote(namespace, delta.head.version, tuple(removed), records, keys)
        if corrupt:
            self._left_out.setdefault(namespace, set()).update(corrupt)
        self._advance(namespace, delta.head, removed)
        self._marks[namespace].update((item.record.id, item.mark) for item in added)
        return True

    def _advance(self, namespace: str, head: Head, removed_ids: Sequence[str] | set[str]) -> None:
        marks = self._marks.setdefault(namespace, {})
        for name in removed_ids:
            marks.pop(name, None)
        self._heads[namespace] = head

    def _catch_up(self, namespace: str, staged: Mapping[str, Staged] | None = None) -> None:
        catch_up(
            self._shared.feed, self, namespace, staged=staged or {}, on_engine=lambda work: work()
        )


def catch_up(
    feed: ChangeFeed,
    mirror: SharedMirror,
    namespace: str,
    *,
    on_engine: OnEngine,
    staged: Mapping[str, Staged] = MappingProxyType({}),
    noticed: Callable[[Delta], None] = lambda delta: None,
) -> None:
    """Bring one namespace of the mirror to where the store is.

    Args:
        on_engine: runs its argument on the engine thread and waits for it; the rest blocks on the
            store and makes no tensor. The argument returns whether the bank has changed.
        staged: documents that need not be fetched, unless they were written again.
        noticed: told how far there is to go.

    Raises:
        StoreError: the store is away, or a record cannot be used; the bank is as it was.
    """
    staged = dict(staged)
    for _ in range(MAX_ROUNDS):
        # After a turn, so that a write which is being made is not taken for another's.
        on_engine(lambda: False)
        delta = feed.delta(namespace, mirror.head(namespace), known=lambda: mirror.marks(namespace))
        if delta.head == delta.after:
            return
        noticed(delta)
        _stage(feed, mirror, namespace, delta, staged, on_engine)
        newest = max((staged[name].version for name in delta.written if name in staged), default=0)
        # What was written since can be one of two documents that belong together.
        if newest <= delta.head.version:
            break
    found = delta
    on_engine(lambda: mirror.publish(namespace, found, staged))


def _stage(
    feed: ChangeFeed,
    mirror: SharedMirror,
    namespace: str,
    delta: Delta,
    staged: dict[str, Staged],
    on_engine: OnEngine,
) -> None:
    """Fetch and decode what `staged` does not have in the delta's version."""
    missing = [
        name
        for name, version in delta.written.items()
        if name not in staged or staged[name].version < version
    ]
    for start in range(0, len(missing), FETCHED_AT_ONCE):
        part = missing[start : start + FETCHED_AT_ONCE]
        for name in part:
            staged.pop(name, None)
        fetched = feed.fetch(namespace, part)

        def work(fetched: Sequence[FetchedRecord] = fetched) -> bool:
            mirror.stage(namespace, fetched, staged)
            return False

        on_engine(work)
