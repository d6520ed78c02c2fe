"""`/namespaces`: banks of their own, made, listed, measured, written out and deleted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from mac_core.errors import CorruptRecord, DocumentNotFound, NamespaceNotFound
from mac_core.types import NamespaceInfo, NamespaceResult
from server.dependencies import EngineDependency, EngineFacade, outcome
from server.exporting import line_of
from server.responses import moment
from server.schemas import Namespace, NoQuery

EXPORT_PAGE = 100
NDJSON = "application/x-ndjson"

router = APIRouter(tags=["namespaces"])
Name = Annotated[Namespace, Path(alias="namespace")]
Nothing = Annotated[NoQuery, Query()]


class NamespaceSummary(BaseModel):
    """Size and version of one namespace's bank."""

    namespace: str
    documents: int
    chunks: int
    bytes: int
    bank_version: int
    created_at: datetime | None
    updated_at: datetime | None = Field(description="of the last write")

    @classmethod
    def of(cls, info: NamespaceInfo) -> Self:
        return cls(
            namespace=info.namespace,
            documents=info.num_documents,
            chunks=info.num_chunks,
            bytes=info.num_bytes,
            bank_version=info.bank_version,
            created_at=moment(info.created_at),
            updated_at=moment(info.updated_at),
        )


class NamespaceList(BaseModel):
    """Every namespace that was made or written to, and not deleted since."""

    namespaces: list[NamespaceSummary]


class NamespaceMade(BaseModel):
    """The namespace is there."""

    namespace: str
    created: bool
    bank_version: int

    @classmethod
    def of(cls, result: NamespaceResult) -> Self:
        return cls(
            namespace=result.namespace,
            created=result.has_changed,
            bank_version=result.bank_version,
        )


class NamespaceRemoved(BaseModel):
    """Answers at or after `bank_version` know nothing of it."""

    namespace: str
    removed: bool = True
    documents: int = Field(description="how many went with it")
    bank_version: int = Field(description="the name's next use goes on from it")


@router.get("/namespaces")
async def get_namespaces(_query: Nothing, engine: EngineDependency) -> NamespaceList:
    """List the namespaces with their sizes and versions."""
    infos = await outcome(engine.list_namespaces())
    return NamespaceList(namespaces=[NamespaceSummary.of(info) for info in infos])


@router.get("/namespaces/{namespace}")
async def get_namespace(
    namespace: Name, _query: Nothing, engine: EngineDependency
) -> NamespaceSummary:
    """Read one namespace's size and version."""
    return NamespaceSummary.of(await _info(engine, namespace))


@router.put("/namespaces/{namespace}", status_code=201, responses={200: {"model": NamespaceMade}})
async def put_namespace(
    namespace: Name, _query: Nothing, response: Response, engine: EngineDependency
) -> NamespaceMade:
    """Make an empty namespace (201); one that is there stays as it is (200).

    Writing a document to a name makes it too: this only makes one without any.
    """
    result = await outcome(engine.create_namespace(namespace))
    response.status_code = 201 if result.has_changed else 200
    return NamespaceMade.of(result)


@router.delete("/namespaces/{namespace}")
async def delete_namespace(
    namespace: Name, _query: Nothing, engine: EngineDependency
) -> NamespaceRemoved:
    """Forget a namespace with all its documents, in one durable write.

    Its versions are not used again: a namespace of the same name goes on behind them, so that
    `min_version` of a write before the deletion stays true.
    """
    result = await outcome(engine.delete_namespace(namespace))
    if not result.has_changed:
        raise NamespaceNotFound(namespace=namespace)
    return NamespaceRemoved(
        namespace=namespace, documents=result.num_removed, bank_version=result.bank_version
    )


@router.get(
    "/namespaces/{namespace}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {}}}},
)
async def get_export(namespace: Name, _query: Nothing, engine: EngineDependency) -> Response:
    """Stream the documents as JSON lines that `POST /documents` takes, in order of writing.

    Not at one version: what is written meanwhile may or may not be in it. A snapshot is. A corrupt
    record is left out: `corrupt_records` of `/readyz` says that there is one.
    """
    await _info(engine, namespace)
    first = await _page(engine, namespace, None)
    return StreamingResponse(_lines(engine, namespace, first), media_type=NDJSON)


async def _info(engine: EngineFacade, namespace: str) -> NamespaceInfo:
    infos = await outcome(engine.list_namespaces())
    found = next((info for info in infos if info.namespace == namespace), None)
    if found is None:
        raise NamespaceNotFound(namespace=namespace)
    return found


async def _lines(engine: EngineFacade, namespace: str, page: Any) -> AsyncIterator[str]:
    while True:
        for info in page.documents:
            try:
                found = await outcome(engine.get_document(info.id, namespace=namespace))
            except (DocumentNotFound, CorruptRecord):  # removed since; left out of the bank too
                continue
            yield json.dumps(line_of(found)) + "\n"
        if page.next_cursor is None:
            return
        page = await _page(engine, namespace, page.next_cursor)


async def _page(engine: EngineFacade, namespace: str, cursor: str | None) -> Any:
    return await outcome(
        engine.list_documents(namespace=namespace, limit=EXPORT_PAGE, cursor=cursor, filter={})
    )
