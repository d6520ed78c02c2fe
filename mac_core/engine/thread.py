"""The engine thread's life, from loading to its end; whatever ends it, everybody is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread, current_thread

import torch

from mac_core.engine.ports import AnsweringModel
from mac_core.engine.scheduler import Scheduler
from mac_core.engine.serving import Serving
from mac_core.errors import EngineFailed, NotReady
from mac_core.memory.store import Store
from mac_core.types import EngineState, Fingerprint

logger = logging.getLogger(__name__)

STOPPED = "the engine was stopped"


class EngineThread:
    """Loads, serves and ends; whatever happens, nobody keeps waiting. Any thread."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        load: Callable[[], AnsweringModel],
        open_store: Callable[[Fingerprint], Store],
        make_serving: Callable[[AnsweringModel, Store], Serving],
        num_threads: int | None,
    ) -> None:
        self.serving: Serving | None = None  # once model and store are there
        self._scheduler = scheduler
        self._load = load
        self._open_store = open_store
        self._make_serving = make_serving
        self._num_threads = num_threads
        self._lock = Lock()
        self._has_begun = Event()  # or has ended without
        self._state: EngineState = "starting"
        self._detail = "not started"
        self._thread = Thread(target=self._run, name="mac-engine", daemon=True)

    @property
    def state(self) -> tuple[EngineState, str]:
        """The state, and what there is to say about it."""
        with self._lock:
            return self._state, self._detail

    def start(self) -> None:
        self._say("loading the model")
        self._thread.start()

    def begin_to_leave(self, detail: str) -> None:
        """Show that no new work is accepted; a thread that never ran has ended by this."""
        with self._lock:
            if self._thread.ident is None:
                self._state, self._detail = "stopped", ""
            elif self._state in ("starting", "ready"):
                self._state, self._detail = "draining", detail

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the thread's end; whether it has ended."""
        if self._thread.ident is None or self._thread is current_thread():
            return self._thread.ident is None
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_until_ready(self, timeout_s: float | None) -> bool:
        """Whether work is accepted, once that is known or the time is up."""
        self._has_begun.wait(timeout_s)
        return self.state[0] == "ready"

    def _run(self) -> None:
        store: Store | None = None
        outcome: Exception = NotReady(STOPPED)
        is_serving = False
        try:
            self._use_threads()
            with torch.inference_mode():
                began = time.perf_counter()
                model = self._load()
                self._say("opening the store")
                store = self._open_store(model.fingerprint)
                self._say("reading the bank and warming up")
                self.serving = self._make_serving(model, store)
                self.serving.prepare()
                logger.info("ready after %.1f s", time.perf_counter() - began)
                is_serving = True
                self._become_ready()
                self.serving.serve()
            self._end("stopped", "")
        except BaseException as error:
            logger.exception("the engine failed")
            detail = f"{type(error).__name__}: {error}"
            self._end("failed", detail)
            outcome = NotReady(f"the engine could not start: {detail}")
            if is_serving:
                outcome = EngineFailed(f"the engine failed: {type(error).__name__}")
        finally:
            self._scheduler.stop(self._refusal())
            self._scheduler.fail_open(outcome)
            if store is not None:
                _close(store)

    def _use_threads(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    def _become_ready(self) -> None:
        with self._lock:
            if self._state == "starting":
                self._state, self._detail = "ready", ""
                self._scheduler.open()
        self._has_begun.set()

    def _say(self, detail: str) -> None:
        with self._lock:
            if self._state == "starting":
                self._detail = detail

    def _end(self, state: EngineState, detail: str) -> None:
        with self._lock:
            self._state, self._detail = state, detail
        self._has_begun.set()

    def _refusal(self) -> str:
        state, _ = self.state
        return "the engine has failed" if state == "failed" else STOPPED


def _close(store: Store) -> None:
    try:
        store.close()
    except Exception:  # everything acknowledged is durable already
        logger.exception("the store could not be closed")
