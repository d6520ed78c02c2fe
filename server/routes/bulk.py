"""`POST /documents` with `application/x-ndjson`: the same path, told apart by its media type."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from server.bulk import BulkAdd, is_bulk
from server.dependencies import EngineDependency, SettingsDependency
from server.problems import Refused
from server.schemas import BulkQuery


class BulkRoute(APIRoute):
    """Matches streamed bodies only; any other goes to the next route of its path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not is_bulk(dict(scope["headers"])):
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=BulkRoute, include_in_schema=False)  # shown with /documents


@router.post("/documents")
async def post_document_stream(
    query: Annotated[BulkQuery, Query()], engine: EngineDependency, settings: SettingsDependency
) -> Response:
    """Learn a document a line; answer an outcome a line, in order, while reading on."""
    if not query.wait:
        detail = "a stream is answered line by line and cannot be a job: leave wait=false out"
        raise Refused(422, "wait_not_supported", detail)
    return BulkAdd(
        engine=engine,
        namespace=query.namespace,
        max_line_bytes=settings.max_body_bytes,
        max_bytes=settings.max_bulk_bytes,
    )
