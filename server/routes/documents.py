"""`/documents`: learn, list, read and forget."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from mac_core.errors import DocumentNotFound, StoreError
from mac_core.types import DEFAULT_NAMESPACE, Document, DocumentResult
from server.dependencies import EngineDependency, outcome, require_json
from server.responses import (
    DocumentDetail,
    DocumentFailed,
    DocumentLearned,
    DocumentList,
    DocumentRemoved,
    DocumentsLearned,
    DocumentSummary,
)
from server.schemas import (
    AddBody,
    DocumentBody,
    DocumentId,
    ListQuery,
    NamespaceQuery,
    NoQuery,
)

router = APIRouter(tags=["documents"])


@router.post(
    "/documents",
    dependencies=[Depends(require_json)],
    status_code=201,
    response_model=DocumentLearned | DocumentsLearned,
    responses={200: {"model": DocumentLearned | DocumentsLearned}},
)
async def post_documents(
    body: Annotated[AddBody, Body()],
    _query: Annotated[NoQuery, Query()],
    response: Response,
    engine: EngineDependency,
) -> DocumentLearned | DocumentsLearned:
    """Learn one document (201, or 200 when it was known) or a batch (200).

    When it answers, the documents are durable and the next question sees them. A batch of which
    the store took nothing is 503.
    """
    if isinstance(body, DocumentBody):
        namespace = body.namespace or DEFAULT_NAMESPACE
        (result,) = await outcome(engine.add([_document(body)], namespace=namespace))
        if result.error is not None:
            raise result.error
        response.status_code = 201 if result.status == "inserted" else 200
        return DocumentLearned.of(result)
    namespace = body.resolved_namespace()
    results = await outcome(
        engine.add([_document(item) for item in body.documents], namespace=namespace)
    )
    failures = [result.error for result in results if isinstance(result.error, StoreError)]
    if len(failures) == len(results):  # nothing was written: the whole can be sent again
        raise failures[0]
    response.status_code = 200
    learned = [_outcome(item, result) for item, result in zip(body.documents, results, strict=True)]
    bank_version = max(result.bank_version for result in results)
    return DocumentsLearned(documents=learned, bank_version=bank_version)


@router.get("/documents")
async def get_documents(
    query: Annotated[ListQuery, Query()], engine: EngineDependency
) -> DocumentList:
    """List documents in the order of writing; `metadata.KEY=VALUE` keeps those that have it."""
    page = await outcome(
        engine.list_documents(
            namespace=query.namespace,
            limit=query.limit,
            cursor=query.cursor,
            filter=query.filter(),
        )
    )
    documents = [DocumentSummary.of(info) for info in page.documents]
    return DocumentList(documents=documents, next_cursor=page.next_cursor)


@router.get("/documents/{document_id:path}")
async def get_document(
    document_id: Annotated[DocumentId, Path()],
    query: Annotated[NamespaceQuery, Query()],
    engine: EngineDependency,
) -> DocumentDetail:
    """Read one document with its text; slashes in the id may be percent-encoded or not."""
    info = await outcome(engine.get_document(document_id, namespace=query.namespace))
    return DocumentDetail.of(info)


@router.delete("/documents/{document_id:path}")
async def delete_document(
    document_id: Annotated[DocumentId, Path()],
    query: Annotated[NamespaceQuery, Query()],
    engine: EngineDependency,
) -> DocumentRemoved:
    """Forget one document: answers are then those of a bank that never held it."""
    result = await outcome(engine.remove([document_id], namespace=query.namespace))
    if not result.removed_ids:
        raise DocumentNotFound(namespace=query.namespace, document_id=document_id)
    return DocumentRemoved(id=document_id, bank_version=result.bank_version)


def _document(body: DocumentBody) -> Document:
    return Document(
        text=body.text,
        id=body.id,
        title=body.title,
        metadata=body.metadata,
        published_at=body.published_at.timestamp() if body.published_at else None,
        ttl_s=body.ttl_seconds,
        on_conflict=body.on_conflict,
        pinned=body.pinned,
    )


def _outcome(body: DocumentBody, result: DocumentResult) -> DocumentLearned | DocumentFailed:
    if result.error is not None:
        return DocumentFailed.of(body.id or result.id or None, result.error)
    return DocumentLearned.of(result)
