"""Documents as a stream: one JSON object a line in, one outcome a line out, in the same order.

Reading goes on while outcomes are written, and stops while too many documents are in between: a
body may be of any length. A client that reads nothing is in the end not read either.

When the store goes away or the server stops, nothing more is learned: what the client still sends
gets its outcome for a moment, and the last line says where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from mac_core.errors import MacError, NotReady, Overloaded
from mac_core.types import DEFAULT_NAMESPACE, Document
from server.bulk_lines import (
    BadLine,
    BodyTooLarge,
    FailedLine,
    Line,
    LineReader,
    StreamStopped,
    parse,
)
from server.bulk_pending import Pending
from server.dependencies import EngineFacade
from server.documents import document_of
from server.problems import is_unavailable

MEDIA_TYPE = "application/x-ndjson"
MAX_IN_FLIGHT = 64  # documents that were read and whose outcome is not written
MAX_IN_FLIGHT_BYTES = 16 * 1024**2  # or one line that is larger
MAX_WAIT_S = 2.0  # before a full ingest lane is asked again
MAX_STOPPING_S = 1.0  # for how long a stream that has stopped is still read, and its end awaited
WATCH_S = 0.25  # between looks at whether the server stops
LEAVING = ("draining", "stopped", "failed")


def is_bulk(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request's body declares itself a stream of documents."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0]
    return media_type.strip().lower() == MEDIA_TYPE.encode()


class BulkAdd(Response):
    """The answer to a streamed body: reads it, has it learned and tells each outcome.

    The head goes out with the first outcome: an engine that refuses the first line, or a store that
    is away, refuses the whole request, with a problem. After that a failure is a line.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        *,
        engine: EngineFacade,
        namespace: str | None,
        max_line_bytes: int,
        max_bytes: int | None,
    ) -> None:
        """
        Args:
            namespace: of lines that name none; lines may name no other.
        """
        super().__init__()
        del self.headers["content-length"]
        self._engine = engine
        self._namespace = namespace
        self._max_line_bytes = max_line_bytes
        self._max_bytes = max_bytes
        self._pending: list[Pending] = []  # in order; the first one is being written
        self._has_begun = False  # a line was accepted: from now on the answer is a stream
        self._is_read = False  # as far as it will be
        self._is_whole = False  # to its end, or to its limit
        self._last_number = 0  # of the lines that get an outcome
        self._unavailable: BaseException | None = None  # why nothing more is learned
        self._stopped_at: int | None = None  # the first line that it befell
        self._reading = asyncio.timeout(None)
        self._changed = asyncio.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(self._read(receive))
        writing = asyncio.create_task(self._write(receive, send))
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (reading, writing):
                if task.done():
                    task.result()  # the client is gone, or the first line was refused
        finally:
            for task in (reading, writing, watching):
                task.cancel()
            for pending in self._pending:
                if pending.future is not None:
                    pending.future.cancel()

    async def _read(self, receive: Receive) -> None:
        try:
            async with self._reading:
                await self._read_all(receive)
                self._is_whole = True
        except TimeoutError:
            if not self._has_begun:
                assert self._unavailable is not None
                raise self._unavailable from None
        async with self._changed:
            self._is_read = True
            self._changed.notify_all()

    async def _read_all(self, receive: Receive) -> None:
        reader = LineReader(receive, max_line_bytes=self._max_line_bytes, max_bytes=self._max_bytes)
        try:
            async for line in reader.lines():
                await self._wait_for_room(len(line.text or b""))
                await self._append(await self._begin(line))
        except BodyTooLarge:
            detail = f"the body exceeds the limit of {self._max_bytes} bytes; the rest is not read"
            last = Pending(Line(number=reader.number + 1, text=None))
            last.failure = FailedLine(
                line=last.line.number, id=None, code="body_too_large", detail=detail
            )
            await self._append(last)

    async def _watch(self) -> None:
        """Stop with the server; a client that sends nothing would not notice."""
        while (state := self._engine.state) not in LEAVING:
            await asyncio.sleep(WATCH_S)
        self._stop(NotReady(f"the engine is {state}"))

    def _stop(self, error: BaseException) -> None:
        """Learn nothing from now on, and soon read nothing."""
        if self._unavailable is not None:
            return
        self._unavailable = error
        with suppress(RuntimeError):  # read to its end already
            self._reading.reschedule(asyncio.get_running_loop().time() + MAX_STOPPING_S)

    async def _begin(self, line: Line) -> Pending:
        """Hand the line's document to the engine; a full lane is waited for, in order."""
        pending = Pending(line)
        try:
            body = parse(line, max_line_bytes=self._max_line_bytes)
            pending.document_id = body.id
            namespace = body.namespace or self._namespace or DEFAULT_NAMESPACE
            if self._namespace not in (None, namespace):
                detail = f"the request is for namespace {self._namespace!r}, got {namespace!r}"
                raise BadLine("invalid_input", detail)
            await self._submit(pending, document_of(body), namespace)
        except BadLine as error:
            pending.failure = FailedLine(
                line=line.number, id=pending.document_id, code=error.code, detail=str(error)
            )
        except MacError as error:
            if not self._has_begun:
                raise
            pending.fail(error)
        self._has_begun = True
        return pending

    async def _submit(self, pending: Pending, document: Document, namespace: str) -> None:
        """Raises what the engine does, but for Overloaded."""
        while self._unavailable is None:
            try:
                pending.future = self._engine.add([document], namespace=namespace)
                return
            except Overloaded as error:
                await asyncio.sleep(min(error.retry_after_s, MAX_WAIT_S))
        pending.fail(self._unavailable)  # not raised: its traceback would grow with each line

    async def _wait_for_room(self, size: int) -> None:
        def has_room() -> bool:
            held = sum(pending.size for pending in self._pending)
            fits = len(self._pending) < MAX_IN_FLIGHT and held + size <= MAX_IN_FLIGHT_BYTES
            return fits or not self._pending

        async with self._changed:
            await self._changed.wait_for(has_room)

    async def _append(self, pending: Pending) -> None:
        async with self._changed:
            self._pending.append(pending)
            self._last_number = pending.line.number
            self._changed.notify_all()

    async def _write(self, receive: Receive, send: Send) -> None:
        has_head = False
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._pending or self._is_read)
            answer = await self._next_answer(is_first=not has_head)
            if not has_head:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                has_head = True
            if answer is None:
                break
            await send(_body(answer))
            async with self._changed:
                self._pending.pop(0)
                self._changed.notify_all()
        if self._unavailable is not None and not (self._is_whole and self._stopped_at is None):
            line = self._stopped_at or self._last_number + 1
            await send(_body(StreamStopped.at(line, self._unavailable)))
            if not self._is_whole:
                await _await_end(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_answer(self, *, is_first: bool) -> BaseModel | None:
        """The outcome of the first line that has none yet; None: there is no such line.

        Raises:
            MacError: of the first line of all, so that the request can be refused.
        """
        if not self._pending:
            return None
        pending = self._pending[0]
        answer = await pending.answer()
        if pending.error is not None and self._is_over(pending.error):
            if is_first:
                raise pending.error
            self._stopped_at = self._stopped_at or pending.line.number
            self._stop(pending.error)
        return answer

    def _is_over(self, error: BaseException) -> bool:
        """Whether nothing that comes after will be learned either."""
        return is_unavailable(error) or self._engine.state in LEAVING


async def _await_end(receive: Receive) -> None:
    """Let the client come to its end: a reset while it writes would take the last line from it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MAX_STOPPING_S):
            while (await receive()).get("more_body", False):
                pass


def _body(answer: BaseModel) -> Message:
    text = answer.model_dump_json()
    return {"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": True}
