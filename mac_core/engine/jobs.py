"""Jobs as callers see them: accepted at once, learned by and by, by a thread of their own.

The thread only feeds the ingest lane (`job_worker`); the engine thread does the work, between
questions, as with any other documents.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore, Event, Thread
from typing import TypeVar
from uuid import uuid4

from mac_core.config import EngineConfig
from mac_core.engine.job_worker import AddDocuments, JobWorker
from mac_core.engine.validation import check_name
from mac_core.errors import MacError, NotReady, Overloaded, StoreError
from mac_core.memory.jobs import STATES, JobStore, with_ids
from mac_core.types import DEFAULT_NAMESPACE, Document, Job, JobPage, JobState

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 1.0  # between looks for what other servers accepted or left
RETRY_S = 2.0  # after the job store failed
PURGE_S = 60.0
STOP_S = 10.0
MAX_CALLS = 64  # waiting for the job store at once
CALL_THREADS = 2
RETRY_AFTER_S = 1.0


class Jobs:
    """Accepts, shows and cancels jobs, and has them worked on. Any thread; nothing here blocks.

    Every call returns a future at once, or refuses at once with NotReady or Overloaded.
    """

    def __init__(
        self,
        *,
        open_store: Callable[[], JobStore],
        wait_until_ready: Callable[[], bool],
        add: AddDocuments,
        config: EngineConfig,
    ) -> None:
        """
        Args:
            open_store: called once the engine is ready, because that holds the directory's lock.
            wait_until_ready: blocks while it starts; False: the engine will not be ready any more.
            add: the ingest lane.
        """
        self._open_store = open_store
        self._wait_until_ready = wait_until_ready
        self._add = add
        self._config = config
        self._store: JobStore | None = None
        self._problem: MacError = NotReady("the engine is starting")  # while there is no store
        self._counts: Mapping[JobState, int] = dict.fromkeys(STATES, 0)
        self._ended: Counter[str] = Counter(done=0, failed=0, cancelled=0, dead=0, retried=0)
        self._stopping = Event()
        self._news = Event()
        self._room = BoundedSemaphore(MAX_CALLS)
        self._calls = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="mac-job-call")
        self._thread = Thread(target=self._run, name="mac-jobs", daemon=True)

    @property
    def counts(self) -> Mapping[JobState, int]:
        """Jobs of all servers by state, when last looked at: a second ago, while all is well."""
        return self._counts

    @property
    def ended(self) -> Mapping[str, int]:
        """What became of jobs in this process, by outcome."""
        return dict(self._ended)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept and begin nothing more. Returns at once."""
        self._problem = NotReady("the engine is draining")
        self._stopping.set()
        self._news.set()

    def close(self) -> None:
        """Wait for the documents in the lane to be accounted for; closing twice is allowed."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._calls.shutdown(wait=True, cancel_futures=True)
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def submit(
        self, documents: Sequence[Document], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[Job]:
        """Keep documents to be learned; durable when the future is there.

        Raises of the future: InvalidInput, StoreError, and Overloaded when too many jobs wait.
        """
        if self._stopping.is_set():
            raise self._problem
        job_id = uuid4().hex

        def keep(store: JobStore) -> Job:
            check_name(namespace, what="the namespace")
            job = store.submit(
                job_id,
                namespace,
                with_ids(namespace, documents),
                max_unfinished=self._config.max_queued_jobs,
            )
            self._news.set()
            return job

        return self._call(keep)

    def get(self, job_id: str) -> Future[Job]:
        """One job; JobNotFound through the future."""
        return self._call(lambda store: store.get(job_id))

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> Future[JobPage]:
        """One page, the newest first; InvalidInput through the future for a strange cursor."""
        return self._call(lambda store: store.list(limit=limit, cursor=cursor, state=state))

    def cancel(self, job_id: str) -> Future[Job]:
        """End a job before its time; JobNotFound and JobFinished through the future."""

        def cancel(store: JobStore) -> Job:
            job = store.cancel(job_id)
            self._ended["cancelled"] += 1
            return job

        return self._call(cancel)

    def _call(self, work: Callable[[JobStore], T]) -> Future[T]:
        store = self._store
        if store is None:
            raise self._problem
        if not self._room.acquire(blocking=False):
            raise Overloaded(lane="jobs", max_queued=MAX_CALLS, retry_after_s=RETRY_AFTER_S)
        try:
            future = self._calls.submit(work, store)
        except RuntimeError:  # closed a moment ago
            self._room.release()
            raise NotReady("the engine was stopped") from None
        future.add_done_callback(lambda _: self._room.release())
        return future

    # The thread.

    def _run(self) -> None:
        if not self._wait_until_ready():
            self._problem = NotReady("the engine could not start")
            return
        worker: JobWorker | None = None
        next_purge = float("-inf")
        was_working = True
        # A failed engine takes no documents: its jobs are left to other servers.
        while not self._stopping.is_set() and self._wait_until_ready():
            self._news.clear()
            try:
                worker = worker or self._open()
                if time.monotonic() >= next_purge:
                    self._purge()
                    next_purge = time.monotonic() + PURGE_S
                is_idle = not worker.work()
                self._look()
                was_working = True
                if is_idle:
                    self._news.wait(POLL_S)
            except Exception as error:
                if was_working or not isinstance(error, StoreError):  # once, not for ever
                    logger.warning("jobs cannot be worked on: %s: %s", type(error).__name__, error)
                was_working = False
                self._stopping.wait(RETRY_S)

    def _open(self) -> JobWorker:
        try:
            store = self._open_store()
        except StoreError as error:
            if not self._stopping.is_set():
                self._problem = error
            raise
        self._store = store
        return JobWorker(
            name=uuid4().hex,
            store=store,
            add=self._add,
            config=self._config,
            stopping=self._stopping,
            ended=self._ended,
        )

    def _purge(self) -> None:
        if self._store is not None:
            self._store.purge(older_than_s=self._config.job_retention_s)

    def _look(self) -> None:
        if self._store is not None:
            self._counts = self._store.counts()
