"""The engine before there is one: torch is imported and the engine built in a thread.

So the port is bound, and liveness answers, in under a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from threading import Lock, Thread

import structlog

from mac_core.errors import NotReady
from mac_core.types import (
    DEFAULT_NAMESPACE,
    Answer,
    Document,
    DocumentInfo,
    DocumentPage,
    DocumentResult,
    EngineState,
    EngineStatus,
    MetadataValue,
    NamespaceInfo,
    NamespaceResult,
    Question,
    RemoveResult,
)
from server.dependencies import EngineFacade, JobsFacade, SnapshotsFacade

log = structlog.stdlib.get_logger("server.deferred")


class DeferredEngine:
    """Calls `build` in a thread, then stands aside. Any thread.

    Until the engine is there every request is refused with NotReady; when `build` fails the
    status says "failed" and why.
    """

    def __init__(self, build: Callable[[], EngineFacade], *, model: str) -> None:
        self._build = build
        self._model = model
        self._lock = Lock()
        self._engine: EngineFacade | None = None
        self._failure = ""
        self._is_draining = False

    def start(self) -> None:
        Thread(target=self._run, name="engine-build", daemon=True).start()

    def _run(self) -> None:
        try:
            engine = self._build()
            with self._lock:
                if self._is_draining:
                    return
                engine.start()
                self._engine = engine
        except Exception as error:
            log.exception("engine_build_failed")
            self._failure = f"{type(error).__name__}: {error}"

    @property
    def state(self) -> EngineState:
        if self._engine is not None:
            return self._engine.state
        return "failed" if self._failure else "draining" if self._is_draining else "starting"

    def status(self) -> EngineStatus:
        if self._engine is not None:
            return self._engine.status()
        return EngineStatus(
            state=self.state,
            detail=self._failure or "the engine is being built",
            model=self._model,
            num_documents=0,
            num_chunks=0,
            bank_bytes=0,
            queued_questions=0,
            queued_documents=0,
            last_step_age_s=None,
        )

    def model_info(self) -> Mapping[str, object]:
        return self._engine.model_info() if self._engine else {"name": self._model}

    def bank_version(self, namespace: str) -> int:
        return self._engine.bank_version(namespace) if self._engine else 0

    @property
    def jobs(self) -> JobsFacade:
        return self._built().jobs

    def add(
        self,
        documents: Sequence[Document],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_ms: float | None = None,
    ) -> Future[list[DocumentResult]]:
        return self._built().add(documents, namespace=namespace, timeout_ms=timeout_ms)

    def remove(
        self, ids: Sequence[str], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[RemoveResult]:
        return self._built().remove(ids, namespace=namespace)

    def remove_matching(
        self, filter: Mapping[str, MetadataValue], *, namespace: str
    ) -> Future[RemoveResult]:
        return self._built().remove_matching(filter, namespace=namespace)

    def ask(self, question: Question) -> Future[Answer]:
        return self._built().ask(question)

    def get_document(self, document_id: str, *, namespace: str) -> Future[DocumentInfo]:
        return self._built().get_document(document_id, namespace=namespace)

    def list_documents(
        self, *, namespace: str, limit: int, cursor: str | None, filter: Mapping[str, MetadataValue]
    ) -> Future[DocumentPage]:
        return self._built().list_documents(
            namespace=namespace, limit=limit, cursor=cursor, filter=filter
        )

    def list_namespaces(self) -> Future[list[NamespaceInfo]]:
        return self._built().list_namespaces()

    def create_namespace(self, namespace: str) -> Future[NamespaceResult]:
        return self._built().create_namespace(namespace)

    def delete_namespace(self, namespace: str) -> Future[NamespaceResult]:
        return self._built().delete_namespace(namespace)

    @property
    def snapshots(self) -> SnapshotsFacade:
        return self._built().snapshots

    def drain(self, *, timeout_s: float) -> bool:
        with self._lock:
            self._is_draining = True
        return self._engine.drain(timeout_s=timeout_s) if self._engine else True

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _built(self) -> EngineFacade:
        """Raises NotReady until there is an engine."""
        if self._engine is None:
            raise NotReady(f"the engine is {self.status().state}: {self.status().detail}")
        return self._engine
