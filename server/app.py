"""The ASGI application: one engine behind the same routes, bare and under `/v1`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from mac_core.errors import MacError
from server.bulk import MEDIA_TYPE as BULK_MEDIA_TYPE
from server.bulk_lines import FailedLine, LearnedLine, StreamStopped
from server.dependencies import EngineFacade
from server.middleware import BodyLimit, RequestObserver
from server.observability import Metrics
from server.problems import (
    MEDIA_TYPE,
    on_http_error,
    on_mac_error,
    on_validation_error,
)
from server.responses import Problem
from server.routes import ask, bulk, documents, jobs, namespaces, operations, snapshots
from server.settings import Settings
from server.version import package_version, source_commit

_PROBLEM = {
    "description": "Problem: see `code`",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
OnError = Callable[[Request, Exception], Awaitable[Response]]


def create_app(
    engine: EngineFacade, settings: Settings, *, metrics: Metrics | None = None
) -> FastAPI:
    """Put `engine` behind HTTP; the app's lifespan starts, drains and closes it.

    Args:
        metrics: the engine's observer, when it was made with one.
    """
    version = package_version()
    app = FastAPI(
        title="mac-server",
        version=version,
        lifespan=_lifespan,
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
        responses=PROBLEM_RESPONSES,
    )
    app.state.engine = engine
    app.state.settings = settings
    app.state.metrics = metrics or Metrics()
    app.state.metrics.watch(engine, version=version, max_namespaces=settings.metrics_namespaces)
    for module in (bulk, documents, namespaces, snapshots, ask, jobs, operations):
        app.include_router(module.router)
        app.include_router(module.router, prefix="/v1", include_in_schema=False)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(RequestObserver, metrics=app.state.metrics)
    handlers: dict[type[Exception], OnError] = {
        HTTPException: on_http_error,
        RequestValidationError: on_validation_error,
        MacError: on_mac_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: _openapi(app, settings)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start at once, drain and close at the end; the loop keeps answering meanwhile."""
    engine: EngineFacade = app.state.engine
    settings: Settings = app.state.settings
    await asyncio.to_thread(source_commit)  # a subprocess, so not on the first /version
    engine.start()
    yield
    await asyncio.to_thread(engine.drain, timeout_s=settings.shutdown_timeout_s)
    await asyncio.to_thread(engine.close)


def _openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The schema with the limits that are settings."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = schema["components"]["schemas"]
        for model in (Problem, LearnedLine, FailedLine, StreamStopped):
            schemas[model.__name__] = model.model_json_schema()
        schemas["DocumentBody"]["properties"]["text"]["maxLength"] = settings.max_document_chars
        asking = schemas["AskBody"]["properties"]
        asking["min_confidence"]["default"] = settings.min_confidence
        asking["timeout_ms"]["default"] = settings.default_timeout_ms
        asking["num_readings"]["default"] = settings.num_readings
        adding = schema["paths"]["/documents"]["post"]
        adding["requestBody"]["content"][BULK_MEDIA_TYPE] = {
            "schema": {"$ref": "#/components/schemas/DocumentBody"}
        }
        adding["responses"]["200"]["content"][BULK_MEDIA_TYPE] = {
            "schema": {
                "description": "of each line",
                "anyOf": [
                    {"$ref": f"#/components/schemas/{model.__name__}"}
                    for model in (LearnedLine, FailedLine, StreamStopped)
                ],
            }
        }
        max_question_tokens = _max_question_tokens(app.state.engine)
        schema["info"]["x-max-question-tokens"] = max_question_tokens
        schema["info"]["x-max-body-bytes"] = settings.max_body_bytes  # and of a line of NDJSON
        schema["info"]["x-max-bulk-bytes"] = settings.max_bulk_bytes  # null: any
        if max_question_tokens is None:
            return schema  # not kept: it will be known when the model is loaded
        app.openapi_schema = schema
    return app.openapi_schema


def _max_question_tokens(engine: EngineFacade) -> int | None:
    config = engine.model_info().get("config")
    limit = config.get("max_question_tokens") if isinstance(config, Mapping) else None
    return limit if isinstance(limit, int) else None
