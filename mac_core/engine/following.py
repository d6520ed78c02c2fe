"""The thread that follows what other servers write. It waits, so that the engine thread need not.

Makes no tensor: what it fetches becomes one on the engine thread, in turns between batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from threading import Event, Thread

from mac_core.engine.mirror import SharedMirror, catch_up
from mac_core.engine.scheduler import Scheduler
from mac_core.engine.tickets import ReadTicket
from mac_core.errors import CorruptRecord, ForeignRecord, NotReady, Overloaded, StoreError
from mac_core.memory.shared import NOTHING, Delta, Head, SharedStore
from mac_core.types import EngineObserver

logger = logging.getLogger(__name__)

WAIT_S = 0.5  # for news; also how long stopping takes at most
RETRY_S = 0.25  # after a failure, and so about how soon after Redis is back writes succeed
CHECK_S = 5.0  # between looks at every namespace's head, which the streams alone do not tell
STOP_S = 3.0
UNUSABLE = (CorruptRecord, ForeignRecord)


class Stopped(Exception):
    """The engine is going away."""


class Follower:
    """Keeps a mirror up with a shared store. `start`, `stop`: engine thread; the rest: any."""

    def __init__(
        self,
        *,
        store: SharedStore,
        mirror: SharedMirror,
        scheduler: Scheduler,
        observer: EngineObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._scheduler = scheduler
        self._observer = observer
        self._clock = clock
        self._stopping = Event()
        self._next_check = float("-inf")
        self._watched: set[str] = set()
        self._stuck: set[str] = set()  # a record of theirs cannot be used; tried at each check
        self._lags: dict[str, int] = {}  # by namespace; those that are in step are not there
        self._is_in_step = True
        self._in_step_at = clock()
        self._detail = ""
        self._thread = Thread(target=self._run, name="mac-follower", daemon=True)

    @property
    def lags(self) -> dict[str, int]:
        """How many versions each namespace that is behind lacks, when last heard."""
        return dict(self._lags)

    @property
    def lag_s(self) -> float:
        """For how long the bank has not been known to equal the store; 0: it was just now."""
        return 0.0 if self._is_in_step else max(0.0, self._clock() - self._in_step_at)

    @property
    def detail(self) -> str:
        """Why the bank is behind, when that is known."""
        return self._detail

    def start(self) -> None:
        self._store.leave_probing_to_feed(True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._store.leave_probing_to_feed(False)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except (Stopped, NotReady, Overloaded, CancelledError):
                self._stopping.wait(RETRY_S)
            except Exception as error:
                self._failed(error)
                self._next_check = float("-inf")
                self._stopping.wait(RETRY_S)

    def _follow(self) -> None:
        """Wait for news, or look everywhere, and bring the mirror there."""
        if self._clock() >= self._next_check:
            behind = self._look_everywhere()
            self._next_check = self._clock() + CHECK_S
        else:
            versions = self._mirror.versions()
            watched = self._watched - self._stuck
            behind = self._store.feed.wait(
                {name: versions.get(name, 0) for name in watched}, timeout_s=WAIT_S
            )
            self._watched |= behind
        self._is_in_step = self._is_in_step and not behind
        for namespace in behind:
            self._catch_up(namespace)
        if not self._stuck:
            self._is_in_step, self._in_step_at = True, self._clock()
            self._lags, self._detail = {}, ""

    def _look_everywhere(self) -> frozenset[str]:
        """Namespaces that are not where the store is, whichever way that came."""
        heads = self._store.feed.heads()
        self._watched |= heads.keys()
        self._stuck.clear()
        names = heads.keys() | self._mirror.versions().keys()
        behind = {n for n in names if heads.get(n, NOTHING) != self._mirror.head(n)}
        self._lags = {n: self._lag(n, heads.get(n, NOTHING)) for n in behind}
        return frozenset(behind)

    def _lag(self, namespace: str, head: Head) -> int:
        return max(0, head.version - self._mirror.head(namespace).version)

    def _catch_up(self, namespace: str) -> None:
        try:
            catch_up(
                self._store.feed,
                self._mirror,
                namespace,
                on_engine=self._on_engine,
                noticed=partial(self._note, namespace),
            )
            self._lags.pop(namespace, None)
        except UNUSABLE as error:
            self._stuck.add(namespace)
            self._failed(error)

    def _note(self, namespace: str, delta: Delta) -> None:
        self._is_in_step = False
        self._lags[namespace] = max(0, delta.head.version - delta.after.version)
        is_other_history = delta.is_reload and not delta.is_drop
        if is_other_history or delta.head.version < delta.after.version:
            logger.error("the store's history is not the one that was followed: reading it anew")

    def _failed(self, error: Exception) -> None:
        was_known = bool(self._detail)
        self._is_in_step = False
        self._detail = f"the store cannot be followed: {type(error).__name__}"
        if not was_known:  # once, not four times a second
            # A record's error names the record, and ids are not logged.
            reason = "" if isinstance(error, UNUSABLE) else f": {error}"
            logger.warning("%s%s", self._detail, reason)
        if isinstance(error, StoreError):
            self._observer.count_store_error("follow")

    def _on_engine(self, work: Callable[[], bool]) -> bool:
        """Run `work` as one turn of the engine thread; if it published, questions look again.

        Raises:
            Stopped: the engine is going away.
            NotReady, Overloaded: it takes no turn for this now.
        """

        def turn() -> bool:
            has_published = work()
            if has_published:
                self._scheduler.unpark()
            return has_published

        ticket = ReadTicket[bool](read=turn, submitted_at=self._clock())
        self._scheduler.submit_read(ticket)
        while not self._stopping.is_set():
            try:
                return ticket.future.result(WAIT_S)
            except FutureTimeoutError:
                if ticket.future.done():
                    raise
        ticket.future.cancel()
        raise Stopped
