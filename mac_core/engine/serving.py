"""What the engine thread does, from the first weight to the last turn. Knows no caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mac_core.config import EngineConfig
from mac_core.engine.asking import Asking
from mac_core.engine.following import Follower
from mac_core.engine.ingest import Ingest
from mac_core.engine.intake import as_store_error
from mac_core.engine.lanes import Turn
from mac_core.engine.learning import engine_failed
from mac_core.engine.mirror import Mirror, SharedMirror
from mac_core.engine.namespaces import Namespaces
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.scheduler import Scheduler
from mac_core.engine.tickets import ReadTicket, WriteTicket
from mac_core.errors import DocumentNotFound, StoreError
from mac_core.memory.bank import MemoryBank
from mac_core.memory.budget import Budget
from mac_core.memory.codebook_records import is_own_id
from mac_core.memory.faiss_index import index_maker
from mac_core.memory.shared import SharedStore
from mac_core.memory.store import Store
from mac_core.memory.tiers import tiers_of
from mac_core.memory.usage import UsageCounter
from mac_core.networks.model import AnswerRequest
from mac_core.types import DocumentInfo, EngineObserver, MetadataValue, RemoveResult

WARM_UP = "Warm water rises."


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Where time comes from; tests turn these by hand."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time  # seconds since the epoch


class Serving:
    """Model, store and bank at work. Engine thread only, but for `bank.view`, `last_step` and
    `follower`'s and the store's state.
    """

    def __init__(
        self,
        *,
        model: AnsweringModel,
        store: Store,
        scheduler: Scheduler,
        config: EngineConfig,
        observer: EngineObserver,
        clocks: Clocks,
    ) -> None:
        self.model = model
        self.store = store
        self.bank = MemoryBank(
            model.config.selection,
            device=config.device,
            make_index=index_maker(config.index),
            tiers=tiers_of(config.tiers),
        )
        self.last_step: float | None = None  # monotonic seconds
        self.follower: Follower | None = None  # of a store that others write to as well
        self._scheduler = scheduler
        self._observer = observer
        self._clocks = clocks
        self.mirror = self._make_mirror()
        usage = UsageCounter(now=clocks.now)
        counts_usage = config.budget.policy == "least_used"
        self._ingest = Ingest(
            model=model,
            store=store,
            bank=self.bank,
            mirror=self.mirror,
            budget=Budget(config.budget, self.bank, usage),
            config=config,
            observer=observer,
            clock=clocks.monotonic,
            now=clocks.now,
        )
        self.namespaces = Namespaces(store=store, mirror=self.mirror, observer=observer)
        self._asking = Asking(
            model=model,
            bank=self.bank,
            config=config,
            observer=observer,
            park=scheduler.park,
            used=usage.note if counts_usage else lambda namespace, sources: None,
            is_stopping=lambda: scheduler.is_stopping,
            clock=clocks.monotonic,
            now=clocks.now,
        )
        self._ingesting: Iterator[None] | None = None
        self._ingesting_documents = 0
        self._ingesting_s = 0.0

    def prepare(self) -> None:
        """Mirror the store and warm the networks up.

        Raises:
            StoreError: a stored record cannot be used by this model.
        """
        self.mirror.load()
        modulation = self.model.amortize([WARM_UP])[0]
        keys = self.model.aggregation_keys(modulation)
        request = AnswerRequest(
            question=WARM_UP,
            modulations=(modulation,),
            aggregation_keys=(keys,),
            log_prior=(0.0,),
            texts=(WARM_UP,),
            max_new_tokens=2,
        )
        asked = self.model.encode_questions([WARM_UP])
        if self.model.config.selection.late_scale > 0:
            self.model.match(asked, [keys])
        self.model.answer([request])
        self.last_step = self._clocks.monotonic()

    def serve(self) -> None:
        """Take turns until the scheduler has none left to give."""
        try:
            if self.follower is not None:
                self.follower.start()
            self._take_turns()
        finally:
            if self.follower is not None:
                self.follower.stop()
            self.bank.close()

    def _take_turns(self) -> None:
        while True:
            is_ingesting = self._ingesting is not None
            turn = self._scheduler.take(
                is_ingesting=is_ingesting,
                wake_after_s=None if is_ingesting else self._ingest.seconds_to_expiry(),
            )
            if turn is None:
                return
            self.last_step = self._clocks.monotonic()  # however long the wait was
            self._step(turn)
            if self._ingesting is None and self._ingest.expire():
                self._scheduler.unpark()
            self.last_step = self._clocks.monotonic()

    def _make_mirror(self) -> Mirror:
        if not isinstance(self.store, SharedStore):
            return Mirror(
                model=self.model, store=self.store, bank=self.bank, observer=self._observer
            )
        mirror = SharedMirror(
            model=self.model, store=self.store, bank=self.bank, observer=self._observer
        )
        self.follower = Follower(
            store=self.store,
            mirror=mirror,
            scheduler=self._scheduler,
            observer=self._observer,
            clock=self._clocks.monotonic,
        )
        return mirror

    def remove_matching(self, namespace: str, wanted: Mapping[str, MetadataValue]) -> RemoveResult:
        """As `Ingest.remove_matching`; never between the steps of an ingest."""
        return self._ingest.remove_matching(namespace, wanted)

    def document(self, namespace: str, document_id: str) -> DocumentInfo:
        """
        Raises:
            DocumentNotFound: it is not there, or has expired.
        """
        info = None if is_own_id(document_id) else self.store.info(namespace, document_id)
        if info is None or self.has_expired(info):
            raise DocumentNotFound(namespace=namespace, document_id=document_id)
        return info

    def is_shown(self, info: DocumentInfo) -> bool:
        """Whether a list shows it: a document, and not expired."""
        return not (is_own_id(info.id) or self.has_expired(info))

    def has_expired(self, info: DocumentInfo) -> bool:
        return info.expires_at is not None and info.expires_at <= self._clocks.now()

    def _step(self, turn: Turn) -> None:
        began = self._clocks.monotonic()
        for ticket in turn.reads:
            self._read(ticket)
        if turn.questions:
            self._asking.answer(turn.questions)
            seconds = self._clocks.monotonic() - began
            self._scheduler.questions.note_pace(num_items=len(turn.questions), seconds=seconds)
        elif turn.removal is not None:
            self._ingest.remove(turn.removal)
            self._scheduler.unpark()
        elif turn.write is not None:
            self._write(turn.write)
            self._scheduler.unpark()
        elif turn.documents:
            self._ingesting = self._ingest.add(turn.documents)
            self._ingesting_documents, self._ingesting_s = len(turn.documents), 0.0
            self._advance(began)
        elif turn.continues_ingest:
            self._advance(began)

    def _advance(self, began: float) -> None:
        """One more step of the ingest that is under way."""
        is_over = next(self._ingesting or iter(()), "over") == "over"
        self._ingesting_s += self._clocks.monotonic() - began
        if is_over:
            self._ingesting = None
            self._scheduler.documents.note_pace(
                num_items=self._ingesting_documents, seconds=self._ingesting_s
            )
        self._scheduler.unpark()

    def _write(self, ticket: WriteTicket[Any]) -> None:
        if ticket.is_cancelled:
            return
        try:
            ticket.resolve(ticket.write())
        except Exception as error:
            ticket.fail(engine_failed(error, doing="a write"))

    def _read(self, ticket: ReadTicket[Any]) -> None:
        if ticket.is_cancelled:
            return
        try:
            ticket.resolve(ticket.read())
        except Exception as error:
            known = as_store_error(error)
            if isinstance(known, StoreError):
                self._observer.count_store_error("read")
            ticket.fail(known)
