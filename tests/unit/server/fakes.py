"""An engine without networks behind the real HTTP layer, and how a test serves it.

Keeps documents, versions and refusals as the real one does; an answer is the first document
that shares a word with the question.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from mac_core.errors import (
    BankBehind,
    DocumentExists,
    DocumentNotFound,
    DocumentTooLong,
    InvalidInput,
    NotReady,
    QuestionTooLong,
    SnapshotExists,
    SnapshotNotFound,
)
from mac_core.types import (
    DEFAULT_NAMESPACE,
    Answer,
    Document,
    DocumentInfo,
    DocumentPage,
    DocumentResult,
    EngineStatus,
    Fingerprint,
    MetadataValue,
    NamespaceInfo,
    NamespaceResult,
    NamespaceStatus,
    Question,
    RemoveResult,
    RestoreResult,
    SnapshotInfo,
    SnapshotNamespace,
    Source,
    Span,
    Timings,
    Usage,
)
from server.app import create_app
from server.dependencies import EngineFacade
from server.settings import Settings
from tests.unit.server.fake_jobs import FakeJobs

T = TypeVar("T")
BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
MAX_QUESTION_TOKENS = 64
NOW = 1_790_000_000.0
CONFIDENCE = 0.5  # of every answer


class FakeSnapshots:
    """Snapshots that copy the fake engine's documents; `failure` is set on the next future."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.taken: dict[str, SnapshotInfo] = {}
        self.failure: Exception | None = None
        self.restored: list[tuple[str, Sequence[str] | None, bool]] = []

    def create(self, name: str | None) -> Future[SnapshotInfo]:
        def create() -> SnapshotInfo:
            if name in self.taken:
                raise SnapshotExists(f"there is a snapshot {name!r}")
            made = self._info(name or "now")
            self.taken[made.name] = made
            return made

        return self._submit(create)

    def list(self) -> Future[list[SnapshotInfo]]:
        return self._submit(lambda: list(self.taken.values()))

    def verify(self, name: str) -> Future[SnapshotInfo]:
        return self._submit(lambda: self._find(name))

    def delete(self, name: str) -> Future[None]:
        def delete() -> None:
            del self.taken[self._find(name).name]

        return self._submit(delete)

    def restore(
        self, name: str, *, namespaces: Sequence[str] | None, is_replacing: bool
    ) -> Future[RestoreResult]:
        def restore() -> RestoreResult:
            found = self._find(name)
            self.restored.append((name, namespaces, is_replacing))
            versions = {n.namespace: n.version + 1 for n in found.namespaces}
            count = sum(n.num_documents for n in found.namespaces)
            return RestoreResult(bank_versions=versions, num_documents=count)

        return self._submit(restore)

    def _find(self, name: str) -> SnapshotInfo:
        if name not in self.taken:
            raise SnapshotNotFound(f"snapshot {name!r}: none")
        return self.taken[name]

    def _info(self, name: str) -> SnapshotInfo:
        namespaces = tuple(
            SnapshotNamespace(
                namespace=namespace,
                version=self._engine.bank_version(namespace),
                num_documents=len(bank),
                num_bytes=100 * len(bank),
            )
            for namespace, bank in self._engine.documents.items()
        )
        return SnapshotInfo(
            name=name,
            format_version=1,
            created_at=NOW,
            store="sqlite",
            fingerprints=(Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64),),
            namespaces=namespaces,
            left_out=(("default", "bad"),),
            num_bytes=1234,
        )

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        def run() -> T:
            if self.failure is not None:
                raise self.failure
            return work()

        return self._engine._submit(run)


class FakeEngine:
    """One thread works in order of arrival, as the real engine's does."""

    def __init__(self, *, max_document_chars: int = 1_000_000) -> None:
        self.state = "ready"
        self.max_document_chars = max_document_chars
        self.documents: dict[str, dict[str, DocumentInfo]] = {}  # by namespace, in order of writing
        self.versions: dict[str, int] = {}
        self.refusal: Exception | None = None  # raised at once by add and ask
        self.failure: Exception | None = None  # set on the next asks' futures
        self.questions: list[Question] = []
        self.gate = threading.Event()  # closed: asks wait; everything else is behind them
        self.gate.set()
        self.asked = threading.Event()
        self.cancelled = threading.Event()
        self.was_closed = False
        self.snapshots = FakeSnapshots(self)
        self.jobs = FakeJobs()
        self._worker = ThreadPoolExecutor(max_workers=1)

    def start(self) -> None: ...

    def status(self) -> EngineStatus:
        held = [info for bank in self.documents.values() for info in bank.values()]
        return EngineStatus(
            state=self.state,  # type: ignore[arg-type]
            detail="",
            model="fake",
            num_documents=len(held),
            num_chunks=sum(info.num_chunks for info in held),
            bank_bytes=100 * len(held),
            tier_bytes={"device": 32 * len(held), "ram": 100 * len(held), "disk": 0},
            queued_questions=0,
            queued_documents=0,
            last_step_age_s=None,
            store="sqlite",
            store_state="open",
            namespaces=tuple(
                NamespaceStatus(
                    namespace=name,
                    bank_version=self.bank_version(name),
                    num_documents=len(bank),
                    num_chunks=len(bank),
                    num_bytes=100 * len(bank),
                )
                for name, bank in sorted(({DEFAULT_NAMESPACE: {}} | self.documents).items())
            ),
        )

    def model_info(self) -> Mapping[str, object]:
        config = {"max_question_tokens": MAX_QUESTION_TOKENS} if self.state == "ready" else None
        return {
            "name": "fake",
            "amortization_hash": "a" * 64,
            "base_lm_hash": "b" * 64,
            "config": config,
        }

    def bank_version(self, namespace: str) -> int:
        return self.versions.get(namespace, 0)

    def add(
        self,
        documents: Sequence[Document],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_ms: float | None = None,
    ) -> Future[list[DocumentResult]]:
        self._refuse()
        return self._submit(lambda: [self._add(document, namespace) for document in documents])

    def _add(self, document: Document, namespace: str) -> DocumentResult:
        normalised = " ".join(document.text.split())
        digest = hashlib.sha256(f"{namespace}\n{normalised}".encode()).hexdigest()[:16]
        document_id = document.id or digest
        bank = self.documents.setdefault(namespace, {})
        try:
            known = bank.get(document_id)
            self._judge(document, known, namespace, document_id)
        except InvalidInput as error:
            return self._result(document_id, "failed", 0, namespace, error)
        except DocumentExists as error:
            return self._result(document_id, "failed", 0, namespace, error)
        num_tokens = len(document.text.split())
        if known and (document.on_conflict == "skip" or known.text == document.text):
            return self._result(document_id, "unchanged", num_tokens, namespace)
        self.versions[namespace] = self.bank_version(namespace) + 1
        bank.pop(document_id, None)
        bank[document_id] = self._info(document, document_id, namespace, known)
        return self._result(document_id, "updated" if known else "inserted", num_tokens, namespace)

    def _judge(
        self, document: Document, known: DocumentInfo | None, namespace: str, document_id: str
    ) -> None:
        if not document.text.strip() or BINARY.search(document.text):
            raise InvalidInput(f"document {document_id!r} is blank or binary")
        if len(document.text) > self.max_document_chars:
            raise DocumentTooLong(num_chars=len(document.text), max_chars=self.max_document_chars)
        if known and document.on_conflict == "fail" and known.text != document.text:
            raise DocumentExists(namespace=namespace, document_id=document_id)

    def _info(
        self, document: Document, document_id: str, namespace: str, known: DocumentInfo | None
    ) -> DocumentInfo:
        return DocumentInfo(
            id=document_id,
            namespace=namespace,
            title=document.title,
            num_chunks=1,
            num_tokens=len(document.text.split()),
            created_at=known.created_at if known else NOW,
            updated_at=NOW,
            published_at=document.published_at,
            expires_at=NOW + document.ttl_s if document.ttl_s else None,
            version=self.versions[namespace],
            metadata=document.metadata,
            text=document.text,
            pinned=document.pinned,
        )

    def _result(
        self,
        document_id: str,
        status: Any,
        num_tokens: int,
        namespace: str,
        error: Exception | None = None,
    ) -> DocumentResult:
        return DocumentResult(
            id=document_id,
            status=status,
            num_chunks=0 if error else 1,
            num_tokens=num_tokens,
            bank_version=self.bank_version(namespace),
            error=error,
        )

    def remove(
        self, ids: Sequence[str], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[RemoveResult]:
        self._refuse()

        def remove() -> RemoveResult:
            bank = self.documents.get(namespace, {})
            removed = tuple(document_id for document_id in ids if bank.pop(document_id, None))
            if removed:
                self.versions[namespace] = self.bank_version(namespace) + 1
            return RemoveResult(removed_ids=removed, bank_version=self.bank_version(namespace))

        return self._submit(remove)

    def remove_matching(
        self, filter: Mapping[str, MetadataValue], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Future[RemoveResult]:
        bank = self.documents.get(namespace, {})
        return self.remove(
            [info.id for info in bank.values() if _matches(info, filter)], namespace=namespace
        )

    def ask(self, question: Question) -> Future[Answer]:
        self._refuse()
        future: Future[Answer] = Future()
        future.add_done_callback(lambda done: done.cancelled() and self.cancelled.set())
        self.questions.append(question)

        def answer() -> None:
            self.gate.wait()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._answer(question))
            except Exception as error:
                future.set_exception(error)

        self._worker.submit(answer)
        self.asked.set()
        return future

    def _answer(self, question: Question) -> Answer:
        if self.failure is not None:
            raise self.failure
        words = question.text.lower().replace("?", "").split()
        if len(words) > MAX_QUESTION_TOKENS:
            raise QuestionTooLong(num_tokens=len(words), max_tokens=MAX_QUESTION_TOKENS)
        bank_version = self.bank_version(question.namespace)
        if question.min_version is not None and question.min_version > bank_version:
            raise BankBehind(bank_version=bank_version, min_version=question.min_version)
        sources = () if question.mode == "none" else self._sources(question, words)
        is_given = question.min_confidence <= CONFIDENCE
        text = "an answer" if not sources else sources[0].snippet
        return Answer(
            text=text if is_given else None,
            confidence=CONFIDENCE,
            sources=sources if is_given else tuple(replace(s, span=None) for s in sources),
            bank_version=bank_version,
            usage=Usage(prompt_tokens=len(words), prefix_tokens=8, completion_tokens=2),
            timings_ms=Timings(queue=0.1, select=0.2, aggregate=0.3, prefill=0.4, decode=0.5),
            model="fake",
        )

    def _sources(self, question: Question, words: list[str]) -> tuple[Source, ...]:
        for info in self.documents.get(question.namespace, {}).values():
            text = info.text or ""
            if _matches(info, question.filter) and set(words) & set(text.lower().split()):
                span = Span(start=0, end=len(text))
                return (
                    Source(
                        id=info.id, chunk=0, score=1.0, title=info.title, snippet=text, span=span
                    ),
                )
        return ()

    def get_document(self, document_id: str, *, namespace: str) -> Future[DocumentInfo]:
        def get() -> DocumentInfo:
            info = self.documents.get(namespace, {}).get(document_id)
            if info is None:
                raise DocumentNotFound(namespace=namespace, document_id=document_id)
            return info

        return self._submit(get)

    def list_documents(
        self, *, namespace: str, limit: int, cursor: str | None, filter: Mapping[str, MetadataValue]
    ) -> Future[DocumentPage]:
        def list_() -> DocumentPage:
            if cursor is not None and not cursor.isdecimal():
                raise InvalidInput(f"cursor {cursor!r} is not one that a page gave")
            start = int(cursor or 0)
            found = [
                replace(info, text=None)
                for info in self.documents.get(namespace, {}).values()
                if _matches(info, filter)
            ]
            more = str(start + limit) if len(found) > start + limit else None
            return DocumentPage(documents=tuple(found[start : start + limit]), next_cursor=more)

        return self._submit(list_)

    def list_namespaces(self) -> Future[list[NamespaceInfo]]:
        return self._submit(
            lambda: [
                NamespaceInfo(
                    namespace=name,
                    num_documents=len(bank),
                    num_chunks=len(bank),
                    num_bytes=100 * len(bank),
                    bank_version=self.versions[name],
                )
                for name, bank in sorted(self.documents.items())
                if name in self.versions
            ]
        )

    def create_namespace(self, namespace: str) -> Future[NamespaceResult]:
        def create() -> NamespaceResult:
            is_new = namespace not in self.documents
            self.documents.setdefault(namespace, {})
            self.versions[namespace] = self.bank_version(namespace) + is_new
            return self._namespace_result(namespace, has_changed=is_new)

        return self._submit(create)

    def delete_namespace(self, namespace: str) -> Future[NamespaceResult]:
        def delete() -> NamespaceResult:
            gone = self.documents.pop(namespace, None)
            self.versions[namespace] = self.bank_version(namespace) + (gone is not None)
            return self._namespace_result(
                namespace, has_changed=gone is not None, num_removed=len(gone or ())
            )

        return self._submit(delete)

    def _namespace_result(self, namespace: str, **values: Any) -> NamespaceResult:
        return NamespaceResult(
            namespace=namespace,
            bank_version=self.versions[namespace],
            **({"num_removed": 0} | values),
        )

    def drain(self, *, timeout_s: float) -> bool:
        self.state = "draining"
        return True

    def close(self) -> None:
        self.gate.set()
        self._worker.shutdown(wait=True)
        self.state = "stopped"
        self.was_closed = True

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.state != "ready":
            raise NotReady(f"the engine is {self.state}")

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        return self._worker.submit(work)


def _matches(info: DocumentInfo, wanted: Mapping[str, MetadataValue]) -> bool:
    missing = object()
    return all(info.metadata.get(key, missing) == value for key, value in wanted.items())


@asynccontextmanager
async def serving(
    engine: EngineFacade, settings: Settings | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the real app, its lifespan run around it; a crash is a 500, as on a socket."""
    app = create_app(engine, settings or Settings())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client
