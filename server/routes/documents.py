"""`/documents`: learn, list, read and forget."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from fastapi.responses import JSONResponse

from mac_core.errors import DocumentNotFound
from mac_core.types import DEFAULT_NAMESPACE, DocumentResult
from server.dependencies import EngineDependency, EngineFacade, outcome, require_json
from server.documents import document_of
from server.job_schemas import JobBody
from server.problems import is_unavailable
from server.responses import (
    DocumentDetail,
    DocumentFailed,
    DocumentLearned,
    DocumentList,
    DocumentRemoved,
    DocumentsLearned,
    DocumentsRemoved,
    DocumentSummary,
)
from server.schemas import (
    AddBody,
    AddQuery,
    DocumentBody,
    DocumentId,
    DocumentsBody,
    ListQuery,
    NamespaceQuery,
    RemoveQuery,
)

router = APIRouter(tags=["documents"])


@router.post(
    "/documents",
    dependencies=[Depends(require_json)],
    status_code=201,
    response_model=DocumentLearned | DocumentsLearned,
    responses={200: {"model": DocumentLearned | DocumentsLearned}, 202: {"model": JobBody}},
)
async def post_documents(
    body: Annotated[AddBody, Body()],
    query: Annotated[AddQuery, Query()],
    response: Response,
    engine: EngineDependency,
) -> DocumentLearned | DocumentsLearned | Response:
    """Learn one document (201, or 200 when it was known) or a batch (200).

    When it answers, the documents are durable and the next question sees them. A batch of which
    the store took nothing because it is away is 503, whatever else is wrong with some documents.
    With `?wait=false` it answers 202 as soon as they are kept as a job, which outlives the server
    and is found at `Location`.

    With `application/x-ndjson` the body is one document a line, however many, and so is the answer.
    """
    if not query.wait:
        return await _accepted(body, engine)
    if isinstance(body, DocumentBody):
        namespace = body.namespace or DEFAULT_NAMESPACE
        (result,) = await outcome(engine.add([document_of(body)], namespace=namespace))
        if result.error is not None:
            raise result.error
        response.status_code = 201 if result.status == "inserted" else 200
        return DocumentLearned.of(result)
    namespace = body.resolved_namespace()
    results = await outcome(
        engine.add([document_of(item) for item in body.documents], namespace=namespace)
    )
    failures = [result.error for result in results if result.error is not None]
    away = next((error for error in failures if is_unavailable(error)), None)
    if away is not None and len(failures) == len(results):
        raise away  # nothing was written: the whole can be sent again
    response.status_code = 200
    learned = [_outcome(item, result) for item, result in zip(body.documents, results, strict=True)]
    bank_version = max(result.bank_version for result in results)
    return DocumentsLearned(documents=learned, bank_version=bank_version)


async def _accepted(body: DocumentBody | DocumentsBody, engine: EngineFacade) -> Response:
    if isinstance(body, DocumentBody):
        documents, namespace = [body], body.namespace or DEFAULT_NAMESPACE
    else:
        documents, namespace = body.documents, body.resolved_namespace()
    kept = engine.jobs.submit([document_of(item) for item in documents], namespace=namespace)
    job = JobBody.of(await outcome(kept))
    headers = {"Location": f"/jobs/{job.id}"}
    return JSONResponse(job.model_dump(mode="json"), status_code=202, headers=headers)


@router.get("/documents")
async def get_documents(
    query: Annotated[ListQuery, Query()], engine: EngineDependency
) -> DocumentList:
    """List documents in the order of writing; `metadata.KEY=VALUE` keeps those that have it.

    With that, a page may have fewer documents than `limit`, or none, and still a `next_cursor`: of
    each page some thousands are looked at.
    """
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


@router.delete("/documents")
async def delete_documents(
    query: Annotated[RemoveQuery, Query()], engine: EngineDependency
) -> DocumentsRemoved:
    """Forget every document that has all of `metadata.KEY=VALUE`, in one durable write.

    Without any filter it is refused. In order with what this server was sent before; with several
    servers, what another one writes at the same moment may or may not be among them. Questions
    wait while it is done. After a 503 send it again: a Redis may have done it and not said so.
    """
    result = await outcome(engine.remove_matching(query.filter(), namespace=query.namespace))
    return DocumentsRemoved(removed=len(result.removed_ids), bank_version=result.bank_version)


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


def _outcome(body: DocumentBody, result: DocumentResult) -> DocumentLearned | DocumentFailed:
    if result.error is not None:
        return DocumentFailed.of(body.id or result.id or None, result.error)
    return DocumentLearned.of(result)
