"""Lines of a streamed body: cut as they arrive, read as documents, and what is answered to each.

Knows no engine. Nothing is held but the line that is being put together. A byte-order mark at the
head of any line is left out: files may have been put one behind the other.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, Field, ValidationError
from starlette.types import Receive

from mac_core.types import DocumentResult
from server.dependencies import ClientGone
from server.problems import MAX_ECHO_CHARS, classify, retry_advice_s
from server.responses import DocumentFailed, DocumentLearned
from server.schemas import DocumentBody


class BodyTooLarge(Exception):
    """The body as a whole exceeds its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that is not blank."""

    number: int  # from 1, blank lines included
    text: bytes | None  # None: too long to be kept


class LearnedLine(DocumentLearned):
    """The document of this line is durable and visible."""

    line: int


class FailedLine(DocumentFailed):
    """The document of this line was not learned; other lines are unaffected."""

    retry_after_s: int | None = Field(
        default=None, description="seconds; set when the same line is worth sending again"
    )
    line: int

    @classmethod
    def because(cls, line: int, error: BaseException, *, document_id: str | None = None) -> Self:
        _, code, detail = classify(error)
        return cls(
            line=line,
            id=document_id,
            code=code,
            detail=detail,
            retry_after_s=retry_advice_s(error),
        )


class StreamStopped(BaseModel):
    """The last line, when the store went away or the server stops: where to go on."""

    status: Literal["stopped"] = "stopped"
    code: str
    detail: str
    retry_after_s: int | None
    line: int = Field(description="the first to send again, with all behind it")

    @classmethod
    def at(cls, line: int, error: BaseException) -> Self:
        _, code, reason = classify(error)
        detail = (
            f"the stream stopped at line {line}: {reason}; send it and the lines behind it again"
        )
        return cls(line=line, code=code, detail=detail, retry_after_s=retry_advice_s(error))


class BadLine(Exception):
    """A line that is no document; says what to answer."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class LineReader:
    """Cuts a request's body into lines, and drops those that are too long without holding them.

    Iterating raises ClientGone, and BodyTooLarge after the lines that fitted.
    """

    def __init__(self, receive: Receive, *, max_line_bytes: int, max_bytes: int | None) -> None:
        self._receive = receive
        self._max_line_bytes = max_line_bytes
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._is_dropping = False  # the line at hand is too long
        self.number = 0  # of the last line that was ended

    async def lines(self) -> AsyncIterator[Line]:
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if self._max_bytes is not None and size > self._max_bytes:
                raise BodyTooLarge
            for line in self._cut(part):
                yield line
        for line in self._cut(b"\n"):  # the last one need not be ended
            yield line

    def _cut(self, part: bytes) -> list[Line]:
        *ends, rest = part.split(b"\n")
        lines = []
        for piece in ends:
            self._keep(piece)
            self.number += 1
            text = None if self._is_dropping else bytes(self._held).removeprefix(BOM_UTF8)
            if text is None or text.strip():
                lines.append(Line(number=self.number, text=text))
            self._held.clear()
            self._is_dropping = False
        self._keep(rest)
        return lines

    def _keep(self, piece: bytes) -> None:
        if self._is_dropping or len(self._held) + len(piece) > self._max_line_bytes:
            self._is_dropping = True
            self._held.clear()
        else:
            self._held += piece


def parse(line: Line, *, max_line_bytes: int) -> DocumentBody:
    """
    Raises:
        BadLine: it is too long, not UTF-8, no JSON, or no document.
    """
    if line.text is None:
        raise BadLine("line_too_large", f"the line exceeds the limit of {max_line_bytes} bytes")
    if b"\x00" in line.text:
        raise BadLine("not_utf8", "the line holds NUL bytes: it is binary or UTF-16, not UTF-8")
    try:
        line.text.decode()
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1}"
        raise BadLine("not_utf8", f"the line is not UTF-8: {error.reason} at {place}") from None
    try:
        return DocumentBody.model_validate_json(line.text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        code = "malformed_json" if first["type"] == "json_invalid" else "invalid_input"
        place = ".".join(str(part)[:MAX_ECHO_CHARS] for part in first["loc"])
        detail = f"{place}: {first['msg']}" if place else first["msg"]
        raise BadLine(code, detail[: 2 * MAX_ECHO_CHARS]) from None


def learned(line: int, result: DocumentResult) -> LearnedLine:
    """From a result whose status is not "failed"."""
    return LearnedLine(line=line, **DocumentLearned.of(result).model_dump())
