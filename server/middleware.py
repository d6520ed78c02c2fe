"""Pure ASGI layers around every route: request id, access log, figures, and the body's limits.

They know neither documents nor questions; bodies pass through unread.
"""

from __future__ import annotations

import re
import time
from codecs import getincrementaldecoder
from typing import Any
from uuid import uuid4

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.bulk import is_bulk
from server.dependencies import ClientGone
from server.observability import Metrics
from server.problems import Refused, on_http_error, on_unexpected

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
QUIET_ROUTES = ("/healthz", "/readyz", "/metrics")  # probed every few seconds: debug level
BULK_PATHS = ("/documents", "/v1/documents")
MAX_DISCARDED_BYTES = 64 * 1024**2
CLIENT_GONE = 499  # nobody reads it; the log and the figures do

log = structlog.stdlib.get_logger("server.access")


class RequestObserver:
    """Gives each request an id, and records what became of it, whatever that is."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        sent = _Sent(send, request_id)
        started = time.perf_counter()
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._metrics.requests_running.track_inprogress(),
        ):
            try:
                await self._app(scope, receive, sent)
            except ClientGone:
                sent.status = CLIENT_GONE
            except Exception:
                log.exception("unhandled_error", route=_route(scope))
                if sent.status:
                    raise  # half an answer is out: the connection must break
                await on_unexpected(Request(scope))(scope, receive, sent)
            finally:
                self._record(scope, sent.status or 500, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = _route(scope), _method(scope)
        self._metrics.observe_request(method=method, route=route, status=status, seconds=seconds)
        write = log.debug if route in QUIET_ROUTES else log.info
        write("request", method=method, route=route, status=status, duration_ms=seconds * 1e3)


class _Sent:
    """`send` that adds the request id and remembers the status; 0 until the head is out."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._header = (b"x-request-id", request_id.encode())
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), self._header]}
        await self._send(message)


class BodyLimit:
    """Refuses a body that is too large before it is held, and JSON that is not UTF-8."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if is_bulk(headers) and scope["path"] in BULK_PATHS and scope["method"] == "POST":
            await self._app(scope, receive, send)  # counts and checks its lines itself
            return
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            # Someone who asked first (Expect) gets the answer before sending anything.
            if b"expect" not in headers:
                await _discard(receive)
            response = await on_http_error(Request(scope), self._too_large())
            await response(scope, receive, send)
            return
        await self._app(scope, self._checked(receive, headers), send)

    def _checked(self, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        """`receive` that counts and decodes as the parts arrive, keeping none of them."""
        size = 0
        is_json = b"json" in headers.get(b"content-type", b"").lower()
        decoder = getincrementaldecoder("utf-8")()

        async def receive_checked() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] != "http.request":
                return message
            part = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size > self._max_bytes:
                if more:
                    await _discard(receive)
                raise self._too_large()
            if is_json:
                await _check_utf8(decoder, part, more=more, receive=receive)
            return message

        return receive_checked

    def _too_large(self) -> Refused:
        detail = f"the body exceeds the limit of {self._max_bytes} bytes"
        return Refused(413, "body_too_large", detail)


async def _check_utf8(decoder: Any, part: bytes, *, more: bool, receive: Receive) -> None:
    """Raises Refused. A raw NUL is no JSON in UTF-8, but is what UTF-16 is full of."""
    try:
        decoder.decode(part, final=not more)
        if b"\x00" not in part:
            return
        detail = "the body holds NUL bytes: it is binary or UTF-16, not UTF-8"
    except UnicodeDecodeError as error:
        detail = f"the body is not UTF-8: {error.reason}"
    if more:
        await _discard(receive)
    raise Refused(400, "not_utf8", detail)


async def _discard(receive: Receive) -> None:
    """Read what the client still sends and keep nothing.

    Closing on a client that is still writing resets the connection, and the client then sees a
    broken pipe instead of the refusal. Bounded: a sender without end is cut off.
    """
    discarded = 0
    while discarded < MAX_DISCARDED_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return
        discarded += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _request_id(scope: Scope) -> str:
    """The caller's own id when it is a plain token, else a new one."""
    given: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if REQUEST_ID.fullmatch(given) else uuid4().hex


def _route(scope: Scope) -> str:
    """The route's template without the version prefix: paths hold ids, templates do not."""
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return path.removeprefix("/v1")


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return method if method in known else "other"  # callers invent methods; labels must not grow
