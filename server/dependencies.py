"""What a route is given: the engine as it sees it, and ways to await the engine's futures.

The event loop only awaits; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Protocol, TypeVar, cast

from fastapi import Depends, Request

from mac_core.errors import NotReady
from mac_core.types import (
    Answer,
    Document,
    DocumentInfo,
    DocumentPage,
    DocumentResult,
    EngineState,
    EngineStatus,
    Job,
    JobPage,
    JobState,
    MetadataValue,
    NamespaceInfo,
    NamespaceResult,
    Question,
    RemoveResult,
    RestoreResult,
    SnapshotInfo,
)
from server.problems import Refused
from server.settings import Settings

T = TypeVar("T")


class SnapshotsFacade(Protocol):
    """The snapshots of an engine, in one directory. Any thread."""

    def create(self, name: str | None) -> Future[SnapshotInfo]: ...

    def list(self) -> Future[list[SnapshotInfo]]: ...

    def verify(self, name: str) -> Future[SnapshotInfo]: ...

    def delete(self, name: str) -> Future[None]: ...

    def restore(
        self, name: str, *, namespaces: Sequence[str] | None, is_replacing: bool
    ) -> Future[RestoreResult]: ...


class JobsFacade(Protocol):
    """The part of `mac_core.engine.jobs.Jobs` that HTTP uses. Any thread."""

    def submit(self, documents: Sequence[Document], *, namespace: str = ...) -> Future[Job]: ...

    def get(self, job_id: str) -> Future[Job]: ...

    def list(
        self, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> Future[JobPage]: ...

    def cancel(self, job_id: str) -> Future[Job]: ...


class EngineFacade(Protocol):
    """The part of `mac_core.engine.Engine` that HTTP uses. Any thread.

    A protocol, so that neither a route nor its test imports torch.
    """

    @property
    def snapshots(self) -> SnapshotsFacade: ...

    @property
    def jobs(self) -> JobsFacade: ...

    @property
    def state(self) -> EngineState: ...

    def start(self) -> None: ...

    def status(self) -> EngineStatus: ...

    def model_info(self) -> Mapping[str, object]: ...

    def bank_version(self, namespace: str) -> int: ...

    def add(
        self,
        documents: Sequence[Document],
        *,
        namespace: str = ...,
        timeout_ms: float | None = None,
    ) -> Future[list[DocumentResult]]: ...

    def remove(self, ids: Sequence[str], *, namespace: str = ...) -> Future[RemoveResult]: ...

    def remove_matching(
        self, filter: Mapping[str, MetadataValue], *, namespace: str
    ) -> Future[RemoveResult]: ...

    def ask(self, question: Question) -> Future[Answer]: ...

    def get_document(self, document_id: str, *, namespace: str) -> Future[DocumentInfo]: ...

    def list_documents(
        self, *, namespace: str, limit: int, cursor: str | None, filter: Mapping[str, MetadataValue]
    ) -> Future[DocumentPage]: ...

    def list_namespaces(self) -> Future[list[NamespaceInfo]]: ...

    def create_namespace(self, namespace: str) -> Future[NamespaceResult]: ...

    def delete_namespace(self, namespace: str) -> Future[NamespaceResult]: ...

    def drain(self, *, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


class ClientGone(Exception):
    """The client closed its connection; nobody reads the answer any more."""


def engine_of(request: Request) -> EngineFacade:
    return cast(EngineFacade, request.app.state.engine)


def settings_of(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


EngineDependency = Annotated[EngineFacade, Depends(engine_of)]
SettingsDependency = Annotated[Settings, Depends(settings_of)]


def require_json(request: Request) -> None:
    """Refuse a body that does not declare itself UTF-8 JSON.

    Raises:
        Refused: 415.
    """
    given = request.headers.get("content-type", "")
    media_type, _, parameters = given.partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        detail = f"send the body as application/json in UTF-8, got {given[:100]!r}"
        raise Refused(415, "unsupported_media_type", detail)


async def outcome(future: Future[T]) -> T:
    """Await what the engine makes of a request.

    Raises:
        MacError: whatever the engine set.
        NotReady: the engine stopped before it came to this request.
    """
    waiter = asyncio.wrap_future(future)
    await asyncio.wait({waiter})  # a cancelled future must not look like a cancelled handler
    return _settled(waiter)


async def outcome_while_connected(future: Future[T], request: Request) -> T:
    """Like `outcome`; a client that goes away cancels the future, so that its row stops.

    Raises:
        ClientGone: the connection closed first.
    """
    waiter = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        either: set[asyncio.Future[Any]] = {waiter, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiter.done():
            raise ClientGone
    finally:
        gone.cancel()
        if not waiter.done():
            future.cancel()
            waiter.cancel()
    return _settled(waiter)


def _settled(waiter: asyncio.Future[T]) -> T:
    if waiter.cancelled():
        raise NotReady("the engine stopped before this request was finished")
    return waiter.result()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
