"""Documents as a stream: one JSON object a line in, one outcome a line out, in the same order.

Reading goes on while outcomes are written, and stops while too many documents are in between: a
body may be of any length. A client that reads nothing is in the end not read either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from mac_core.errors import MacError, Overloaded
from mac_core.types import DEFAULT_NAMESPACE, Document, DocumentResult
from server.bulk_lines import (
    BadLine,
    BodyTooLarge,
    FailedLine,
    Line,
    LineReader,
    answer_to,
    parse,
)
from server.dependencies import EngineFacade, outcome
from server.documents import document_of

MEDIA_TYPE = "application/x-ndjson"
MAX_IN_FLIGHT = 64  # documents that were read and whose outcome is not written
MAX_IN_FLIGHT_BYTES = 16 * 1024**2  # or one line that is larger
MAX_WAIT_S = 2.0  # before a full ingest lane is asked again


def is_bulk(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request's body declares itself a stream of documents."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0]
    return media_type.strip().lower() == MEDIA_TYPE.encode()


class Pending:
    """A line whose outcome is there, or will be."""

    def __init__(self, line: Line, document_id: str | None = None) -> None:
        self.line = line
        self.size = len(line.text or b"")
        self.document_id = document_id
        self.future: Future[list[DocumentResult]] | None = None
        self.failure: BaseModel | None = None

    async def answer(self) -> BaseModel:
        if self.future is None:
            assert self.failure is not None
            return self.failure
        try:
            (result,) = await outcome(self.future)
        except Exception as error:
            return FailedLine.because(self.line.number, error, document_id=self.document_id)
        return answer_to(self.line.number, self.document_id, result)


class BulkAdd(Response):
    """The answer to a streamed body: reads it, has it learned and tells each outcome.

    The head goes out once the first line was accepted: an engine that refuses it refuses the whole
    request, with a problem. After that a failure is a line.
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
        self._is_read = False
        self._changed = asyncio.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(self._read(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (reading, writing):
                if task.done():
                    task.result()  # the client is gone, or the first line was refused
        finally:
            for task in (reading, writing):
                task.cancel()
            for pending in self._pending:
                if pending.future is not None:
                    pending.future.cancel()

    async def _read(self, receive: Receive) -> None:
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
        async with self._changed:
            self._is_read = True
            self._changed.notify_all()

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
            pending.future = await self._submit(document_of(body), namespace)
        except BadLine as error:
            pending.failure = FailedLine(
                line=line.number, id=pending.document_id, code=error.code, detail=str(error)
            )
        except MacError as error:
            if not self._has_begun:
                raise
            pending.failure = FailedLine.because(
                line.number, error, document_id=pending.document_id
            )
        self._has_begun = True
        return pending

    async def _submit(self, document: Document, namespace: str) -> Future[list[DocumentResult]]:
        while True:
            try:
                return self._engine.add([document], namespace=namespace)
            except Overloaded as error:
                await asyncio.sleep(min(error.retry_after_s, MAX_WAIT_S))

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
            self._changed.notify_all()

    async def _write(self, send: Send) -> None:
        has_head = False
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._pending or self._is_read)
            if not has_head:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                has_head = True
            if not self._pending:
                break
            text = (await self._pending[0].answer()).model_dump_json()
            await send(
                {"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": True}
            )
            async with self._changed:
                self._pending.pop(0)
                self._changed.notify_all()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
