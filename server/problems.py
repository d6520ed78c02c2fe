"""Every error as an RFC 9457 problem: one table from error type to status and stable code.

Statuses of 500 never carry the error's own words: those go to the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from mac_core.errors import (
    BankBehind,
    BankFull,
    CheckpointError,
    ConfigurationError,
    CorruptRecord,
    CorruptSnapshot,
    DeadlineExceeded,
    DocumentExists,
    DocumentNotFound,
    DocumentTooLong,
    EngineFailed,
    ForeignRecord,
    ForeignSnapshot,
    InvalidInput,
    JobFinished,
    JobNotFound,
    MacError,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NotReady,
    Overloaded,
    QuestionTooLong,
    SnapshotError,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotTooNew,
    StoreError,
)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # of a validation; a body of 256 bad documents needs no longer list
MAX_ECHO_CHARS = 200  # of anything the caller sent
RETRY_NOT_READY_S = 2

PROBLEMS: dict[type[MacError], tuple[int, str]] = {
    InvalidInput: (422, "invalid_input"),
    DocumentTooLong: (413, "document_too_long"),
    QuestionTooLong: (422, "question_too_long"),
    DocumentNotFound: (404, "document_not_found"),
    NamespaceNotFound: (404, "namespace_not_found"),
    DocumentExists: (409, "document_exists"),
    SnapshotError: (409, "snapshot_error"),
    SnapshotNotFound: (404, "snapshot_not_found"),
    SnapshotExists: (409, "snapshot_exists"),
    CorruptSnapshot: (409, "corrupt_snapshot"),
    SnapshotTooNew: (409, "snapshot_too_new"),
    ForeignSnapshot: (409, "foreign_snapshot"),
    NamespaceNotEmpty: (409, "namespace_not_empty"),
    BankFull: (507, "bank_full"),
    JobNotFound: (404, "job_not_found"),
    JobFinished: (409, "job_finished"),
    Overloaded: (429, "overloaded"),
    DeadlineExceeded: (504, "deadline_exceeded"),
    NotReady: (503, "not_ready"),
    BankBehind: (409, "bank_behind"),
    StoreError: (503, "store_unavailable"),
    CorruptRecord: (503, "corrupt_record"),
    ForeignRecord: (503, "foreign_record"),
    ConfigurationError: (500, "configuration_error"),
    CheckpointError: (500, "checkpoint_error"),
    EngineFailed: (500, "engine_failed"),
}
INTERNAL = (500, "internal_error")

# What schema validation calls by a name of its own, by field and pydantic's error type.
VALIDATION_CODES = {
    ("documents", "too_long"): "too_many_documents",
    ("question", "string_too_long"): "question_too_long",
}
HINTS = {
    "question_too_long": "; the limit in tokens, far below, is x-max-question-tokens of"
    " /openapi.json"
}
HTTP_CODES = {
    400: "malformed_json",  # the framework's only 400: a body it could not parse
    404: "not_found",
    405: "method_not_allowed",
}
BODY_TAGS = ("document", "batch")  # the union's tags, which are no place in the caller's body


class Refused(HTTPException):
    """HTTP's own refusal, before any engine: size, encoding, content type."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status_code=status, detail=detail)
        self.code = code


def classify(error: BaseException) -> tuple[int, str, str]:
    """Status, code and detail of an error that the engine raised or returned."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            status, code = PROBLEMS[kind]
            return status, code, str(error) if status != 500 else _HIDDEN
    return *INTERNAL, _HIDDEN


def code_named(name: str) -> str:
    """The stable code of an error that was kept by the name of its type."""
    return next(
        (code for kind, (_, code) in PROBLEMS.items() if kind.__name__ == name), INTERNAL[1]
    )


_HIDDEN = "the server failed on this request; its log has the cause under the request id"


def problem(
    request: Request,
    *,
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Response:
    """One problem document; `members` are its extension members."""
    content = {
        "type": "about:blank",  # RFC 9457, 4.2.1: the code says the rest
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": getattr(request.state, "request_id", None),
        **members,
    }
    # ASCII: what a caller sent may hold lone surrogates, which UTF-8 cannot.
    return Response(json.dumps(content).encode(), status, headers, MEDIA_TYPE)


async def on_mac_error(request: Request, error: Exception) -> Response:
    status, code, detail = classify(error)
    retry_after_s = retry_advice_s(error)
    if retry_after_s is None:
        return problem(request, status=status, code=code, detail=detail)
    return problem(
        request,
        status=status,
        code=code,
        detail=detail,
        headers={"Retry-After": str(retry_after_s)},
        retry_after_s=retry_after_s,
    )


def is_unavailable(error: BaseException | None) -> bool:
    """Whether the store or the engine is away, for every document and not only for this one."""
    is_one_record = isinstance(error, CorruptRecord | ForeignRecord)
    return isinstance(error, NotReady | StoreError) and not is_one_record


def retry_advice_s(error: BaseException) -> int | None:
    """After how long the same is worth sending again: whole seconds, as the header wants them."""
    if isinstance(error, Overloaded):
        return max(1, ceil(error.retry_after_s))
    if isinstance(error, CorruptRecord | ForeignRecord):
        return None  # it will be no other the next time
    if isinstance(error, NotReady | StoreError):
        return RETRY_NOT_READY_S
    return None


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    status = error.status_code
    code = error.code if isinstance(error, Refused) else HTTP_CODES.get(status, "http_error")
    return problem(
        request, status=status, code=code, detail=str(error.detail), headers=error.headers
    )


async def on_validation_error(request: Request, error: Exception) -> Response:
    """400 for a body that is no JSON, else 422 with the first errors and none of the input."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        detail = f"the body is not JSON: {errors[0]['ctx']['error']} at {errors[0]['loc'][-1]}"
        return problem(request, status=400, code="malformed_json", detail=detail)
    shown = [_field_error(item) for item in errors[:MAX_ERRORS]]
    code = VALIDATION_CODES.get((str(errors[0]["loc"][-1]), errors[0]["type"]), "invalid_input")
    detail = f"{'.'.join(map(str, shown[0]['loc']))}: {shown[0]['msg']}{HINTS.get(code, '')}"
    return problem(request, status=422, code=code, detail=detail, errors=shown)


def _field_error(item: Mapping[str, Any]) -> dict[str, Any]:
    loc: Sequence[Any] = item["loc"]
    if len(loc) > 1 and loc[0] == "body" and loc[1] in BODY_TAGS:
        loc = (loc[0], *loc[2:])
    return {
        "loc": [part[:MAX_ECHO_CHARS] if isinstance(part, str) else part for part in loc],
        "msg": str(item["msg"])[:MAX_ECHO_CHARS],
        "type": item["type"],
    }


def on_unexpected(request: Request) -> Response:
    status, code = INTERNAL
    return problem(request, status=status, code=code, detail=_HIDDEN)
