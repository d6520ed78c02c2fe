"""The facade: add, remove, ask and read from any thread; one engine thread does the work.

Every call returns a future at once or refuses at once. No torch call runs on a caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mac_core.config import EngineConfig, to_dict
from mac_core.engine.jobs import Jobs
from mac_core.engine.ports import AnsweringModel, SilentObserver
from mac_core.engine.scheduler import Scheduler
from mac_core.engine.serving import Clocks, Serving
from mac_core.engine.snapshots import Snapshots
from mac_core.engine.thread import STOPPED, EngineThread
from mac_core.engine.tickets import (
    DocumentsTicket,
    QuestionTicket,
    ReadTicket,
    RemovalTicket,
    WriteTicket,
)
from mac_core.errors import NotReady
from mac_core.memory import opening
from mac_core.memory.jobs import JobStore
from mac_core.memory.shared import SharedStore
from mac_core.memory.store import Store
from mac_core.memory.views import BankView
from mac_core.types import (
    DEFAULT_NAMESPACE,
    Answer,
    Document,
    DocumentInfo,
    DocumentPage,
    DocumentResult,
    EngineObserver,
    EngineState,
    EngineStatus,
    Fingerprint,
    MetadataValue,
    NamespaceInfo,
    NamespaceResult,
    NamespaceStatus,
    Question,
    RemoveResult,
)

T = TypeVar("T")

STOP_GRACE_S = 30.0  # how long a batch may take to notice that it must end


class Engine:
    """One model, one store, one thread. Every method from any thread.

    A future is settled exactly once: with a result, with a MacError, or by its own `cancel`.
    """

    def __init__(
        self,
        *,
        bundle: Path,
        store_directory: Path,
        store_url: str | None = None,
        snapshot_directory: Path | None = None,
        config: EngineConfig,
        observer: EngineObserver | None = None,
        load: Callable[[], AnsweringModel] | None = None,
        open_store: Callable[[Fingerprint], Store] | None = None,
        open_job_store: Callable[[], JobStore] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """
        Args:
            store_url: as `mac_core.memory.opening` reads it; None: SQLite in `store_directory`.
            snapshot_directory: None: `snapshots` in `store_directory`.
            load: gives the model; by default it is read from `bundle`. Engine thread.
            open_store: gives the store; by default that of `store_url`. Engine thread.
            open_job_store: gives the jobs; by default those beside that store.
        """
        url = store_url or opening.url_of_directory(store_directory)
        self._name = bundle.name
        self._config = config
        self._observer = observer or SilentObserver()
        self._clocks = clocks or Clocks()
        self._scheduler = Scheduler(
            max_queued_questions=config.max_queued_questions,
            max_queued_documents=config.max_queued_documents,
            max_batch_questions=config.max_batch_questions,
            max_batch_documents=config.max_batch_chunks,
            clock=self._clocks.monotonic,
            observe_late=self._observe_late,
        )
        self._thread = EngineThread(
            scheduler=self._scheduler,
            load=load or (lambda: _load_bundle(bundle, config)),
            open_store=open_store
            or (lambda fingerprint: opening.open_store(url, fingerprint=fingerprint)),
            make_serving=self._make_serving,
            num_threads=config.num_threads,
        )
        self.snapshots = Snapshots(
            snapshot_directory or store_directory / "snapshots",
            read=self._submit_read,
            write=self._submit_write,
        )
        self._ran_out_of_time = False
        self.jobs = Jobs(
            open_store=open_job_store or (lambda: opening.open_job_store(url)),
            wait_until_ready=self.wait_until_ready,
            add=self.add,
            config=config,
        )

    # Life.

    def start(self) -> None:
        """Begin to load; returns at once. `status` tells when the engine is ready, or why not."""
        self._thread.start()
        self.jobs.start()

    def wait_until_ready(self, *, timeout_s: float | None = None) -> bool:
        """Block until the engine is ready or cannot become so; whether it is ready."""
        return self._thread.wait_until_ready(timeout_s)

    def drain(self, *, timeout_s: float) -> bool:
        """Refuse new work and finish what is queued; whether that was done in time."""
        self.jobs.stop()
        self._scheduler.drain("the engine is draining")
        self._thread.begin_to_leave("finishing what is queued")
        is_over = self._thread.join(timeout_s)
        self._ran_out_of_time = not is_over
        return is_over

    def close(self, *, now: bool = False) -> None:
        """Finish what is queued and stop; closing twice is allowed.

        Args:
            now: what is queued gets NotReady instead, and answers end at their next step. So it
                goes, too, after a `drain` that ran out of time.
        """
        self.jobs.stop()
        if now or self._ran_out_of_time:
            self._scheduler.stop(STOPPED)
            self._thread.begin_to_leave("stopping")
            self._thread.join(STOP_GRACE_S)
        else:
            self._scheduler.drain("the engine is closing")
            self._thread.begin_to_leave("finishing what is queued")
            self._thread.join(None)
        self._scheduler.fail_open(NotReady(STOPPED))
        self.jobs.close()

    # Health.

    @property
    def state(self) -> EngineState:
        return self._thread.state[0]

    def status(self) -> EngineStatus:
        """The engine's health; looks at every namespace and waits for nothing."""
        serving = self._thread.serving
        bank = None if serving is None else serving.bank
        state, detail = self._thread.state
        follower = None if serving is None else serving.follower
        lags = {} if follower is None else follower.lags
        views = [] if bank is None else [bank.view(name) for name in bank.namespaces()]
        held = {view.namespace: _namespace_status(view, lags) for view in views}
        if bank is not None:
            empty = {DEFAULT_NAMESPACE, *lags} - held.keys()
            # No view, and so no tensor, is made for these.
            held |= {
                name: NamespaceStatus(namespace=name, lag_versions=lags.get(name, 0))
                for name in empty
            }
        return EngineStatus(
            state=state,
            detail=detail or ("" if follower is None else follower.detail),
            model=self._name if serving is None else serving.model.config.name,
            num_documents=sum(view.num_documents for view in views),
            num_chunks=sum(view.num_chunks for view in views),
            bank_bytes=sum(view.num_bytes for view in views),
            tier_bytes={} if bank is None else bank.tier_bytes,
            queued_questions=self._scheduler.count_questions(),
            queued_documents=self._scheduler.count_documents(),
            last_step_age_s=self._last_step_age_s(),
            lag_versions=max(lags.values(), default=0),
            namespaces=tuple(held[name] for name in sorted(held)),
            num_corrupt=0 if serving is None else serving.mirror.num_corrupt,
            jobs=self.jobs.counts,
            jobs_ended=self.jobs.ended,
            **self._store_status(serving),
        )

    def model_info(self) -> Mapping[str, object]:
        """Name, hashes and configuration; only the name while loading."""
        serving = self._thread.serving
        if serving is None:
            return {"name": self._name}
        fingerprint, config = serving.model.fingerprint, serving.model.config
        return {
            "name": config.name,
            "amortization_hash": fingerprint.amortization_hash,
            "base_lm_hash": fingerprint.base_lm_hash,
            "config": to_dict(config),
        }

    def bank_version(self, namespace: str) -> int:
        """The version that the next answer from `namespace` will have at least."""
        serving = self._thread.serving
        return 0 if serving is None else serving.bank.view(namespace).version

    # Work. Each raises NotReady (starting, draining, failed) or Overloaded (queue full) at once.

    def add(
        self,
        documents: Sequence[Document],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_ms: float | None = None,
    ) -> Future[list[DocumentResult]]:
        """Learn documents; one result for each, in order, when the last is durable and visible.

        A document that cannot be learned has status `failed` and its error; others don't notice.

        Args:
            timeout_ms: what is not begun by then fails with DeadlineExceeded; None: no deadline.
        """
        ticket = DocumentsTicket(
            documents=tuple(documents),
            namespace=namespace,
            timeout_ms=timeout_ms,
            submitted_at=self._clocks.monotonic(),
        )
        if not ticket.documents:
            ticket.resolve([])
            return ticket.future
        self._scheduler.submit_documents(ticket)
        return ticket.future

    def remove(
        self, ids: Sequence[str], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[RemoveResult]:
        """Forget documents, in order with those added before; unknown ids are no error."""
        ticket = RemovalTicket(
            ids=tuple(ids), namespace=namespace, submitted_at=self._clocks.monotonic()
        )
        self._scheduler.submit_removal(ticket)
        return ticket.future

    def remove_matching(
        self, filter: Mapping[str, MetadataValue], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[RemoveResult]:
        """Forget every document with this metadata, in order with what was written before."""
        return self._submit_write(lambda serving: serving.remove_matching(namespace, filter))

    def ask(self, question: Question) -> Future[Answer]:
        """Answer a question; cancelling the future frees its row within a decode step."""
        timeout_ms = question.timeout_ms
        ticket = QuestionTicket(
            question=question,
            timeout_ms=self._config.default_timeout_ms if timeout_ms is None else timeout_ms,
            submitted_at=self._clocks.monotonic(),
        )
        self._scheduler.submit_question(ticket)
        return ticket.future

    def get_document(self, document_id: str, *, namespace: str) -> Future[DocumentInfo]:
        """One document with its text; DocumentNotFound through the future."""
        return self._submit_read(lambda serving: serving.document(namespace, document_id))

    def list_documents(
        self, *, namespace: str, limit: int, cursor: str | None, filter: Mapping[str, MetadataValue]
    ) -> Future[DocumentPage]:
        """One page in order of writing; InvalidInput through the future for a strange cursor."""

        def read(serving: Serving) -> DocumentPage:
            page = serving.store.list(namespace, limit=limit, cursor=cursor, filter=filter)
            kept = tuple(info for info in page.documents if serving.is_shown(info))
            return replace(page, documents=kept)

        return self._submit_read(read)

    def list_namespaces(self) -> Future[list[NamespaceInfo]]:
        """Every namespace that is there, by name."""
        return self._submit_read(lambda serving: list(serving.store.namespaces()))

    def create_namespace(self, namespace: str) -> Future[NamespaceResult]:
        """Make an empty namespace, in order with what was written before."""
        return self._submit_write(lambda serving: serving.namespaces.create(namespace))

    def delete_namespace(self, namespace: str) -> Future[NamespaceResult]:
        """Forget a namespace with all that was written to it before."""
        return self._submit_write(lambda serving: serving.namespaces.delete(namespace))

    def _submit_write(self, write: Callable[[Serving], T]) -> Future[T]:
        ticket = WriteTicket[T](
            write=lambda: write(self._serving()), submitted_at=self._clocks.monotonic()
        )
        self._scheduler.submit_removal(ticket)
        return ticket.future

    def _submit_read(self, read: Callable[[Serving], T]) -> Future[T]:
        ticket = ReadTicket[T](
            read=lambda: read(self._serving()), submitted_at=self._clocks.monotonic()
        )
        self._scheduler.submit_read(ticket)
        return ticket.future

    def _serving(self) -> Serving:
        if self._thread.serving is None:
            raise NotReady("the engine is starting")
        return self._thread.serving

    def _make_serving(self, model: AnsweringModel, store: Store) -> Serving:
        return Serving(
            model=model,
            store=store,
            scheduler=self._scheduler,
            config=self._config,
            observer=self._observer,
            clocks=self._clocks,
        )

    def _observe_late(self, waited_s: float) -> None:
        for phase in ("queue", "total"):
            self._observer.observe_phase(phase, waited_s)

    def _store_status(self, serving: Serving | None) -> dict[str, Any]:
        if serving is None:
            return {}
        follower, store = serving.follower, serving.store
        if follower is None:
            return {"store": store.kind, "store_state": "open"}
        is_away = isinstance(store, SharedStore) and store.is_away
        return {
            "store": store.kind,
            "store_state": "away" if is_away else "open",
            "lag_s": follower.lag_s,
        }

    def _last_step_age_s(self) -> float | None:
        serving = self._thread.serving
        if serving is None or serving.last_step is None:
            return None
        # Waiting for work is not standing still.
        return 0.0 if self._scheduler.is_waiting else self._clocks.monotonic() - serving.last_step


def _namespace_status(view: BankView, lags: Mapping[str, int]) -> NamespaceStatus:
    return NamespaceStatus(
        namespace=view.namespace,
        bank_version=view.version,
        num_documents=view.num_documents,
        num_chunks=view.num_chunks,
        num_bytes=view.num_bytes,
        lag_versions=lags.get(view.namespace, 0),
    )


def _load_bundle(bundle: Path, config: EngineConfig) -> AnsweringModel:
    # Not at the top: whoever brings a model of their own needs none of these networks.
    from mac_core.networks.build import load_bundle

    return load_bundle(bundle, device=config.device, precision=config.precision)
