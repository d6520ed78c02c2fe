"""A line of a streamed body between being read and being answered."""

from __future__ import annotations

from concurrent.futures import Future

from pydantic import BaseModel

from mac_core.types import DocumentResult
from server.bulk_lines import FailedLine, Line, learned
from server.dependencies import outcome


class Pending:
    """A line whose outcome is there, or will be."""

    def __init__(self, line: Line, document_id: str | None = None) -> None:
        self.line = line
        self.size = len(line.text or b"")
        self.document_id = document_id
        self.future: Future[list[DocumentResult]] | None = None
        self.failure: BaseModel | None = None
        self.error: BaseException | None = None  # of the engine or the store

    def fail(self, error: BaseException) -> BaseModel:
        self.error = error
        self.failure = FailedLine.because(self.line.number, error, document_id=self.document_id)
        return self.failure

    async def answer(self) -> BaseModel:
        if self.future is None:
            assert self.failure is not None
            return self.failure
        try:
            (result,) = await outcome(self.future)
        except Exception as error:
            return self.fail(error)
        if result.error is None:
            return learned(self.line.number, result)
        self.document_id = self.document_id or result.id or None
        return self.fail(result.error)
