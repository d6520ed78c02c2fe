"""What the API answers: response bodies, and how the engine's values become them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from mac_core.types import (
    Answer,
    DocumentInfo,
    DocumentResult,
    MetadataValue,
    Mode,
)
from server.problems import classify

NO_DOCUMENT_NOTE = "no document was used: the base LM answered on its own"
NO_ANSWER_NOTE = "no answer: nothing in the bank answers this with the confidence asked for"
NOTHING_NOTE = "no answer: no document was used, and the base LM alone is not as confident as asked"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(seconds: float | None) -> datetime | None:
    """Seconds since the epoch as a time in UTC."""
    # Addition, because fromtimestamp refuses what some platforms' time_t cannot hold.
    return None if seconds is None else _EPOCH + timedelta(seconds=seconds)


class DocumentLearned(BaseModel):
    """The document is durable and answers at or after `bank_version` have seen it."""

    id: str
    status: Literal["inserted", "updated", "unchanged"]
    chunks: int
    tokens: int
    bank_version: int

    @classmethod
    def of(cls, result: DocumentResult) -> Self:
        """From a result whose status is not "failed"."""
        return cls.model_validate(
            {
                "id": result.id,
                "status": result.status,
                "chunks": result.num_chunks,
                "tokens": result.num_tokens,
                "bank_version": result.bank_version,
            }
        )


class DocumentFailed(BaseModel):
    """This document of a batch was not learned; its neighbours are unaffected."""

    id: str | None
    status: Literal["failed"] = "failed"
    code: str
    detail: str

    @classmethod
    def of(cls, document_id: str | None, error: Exception) -> Self:
        _, code, detail = classify(error)
        return cls(id=document_id, code=code, detail=detail)


class DocumentsLearned(BaseModel):
    """One outcome per document, in the order of the request."""

    documents: list[DocumentLearned | DocumentFailed]
    bank_version: int


class DocumentSummary(BaseModel):
    """A stored document without its text."""

    id: str
    namespace: str
    title: str | None
    chunks: int
    tokens: int
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None
    expires_at: datetime | None
    bank_version: int = Field(description="the version that wrote it")
    metadata: dict[str, MetadataValue]
    pinned: bool

    @classmethod
    def of(cls, info: DocumentInfo) -> Self:
        return cls.model_validate(
            {
                "id": info.id,
                "namespace": info.namespace,
                "title": info.title,
                "chunks": info.num_chunks,
                "tokens": info.num_tokens,
                "created_at": moment(info.created_at),
                "updated_at": moment(info.updated_at),
                "published_at": moment(info.published_at),
                "expires_at": moment(info.expires_at),
                "bank_version": info.version,
                "metadata": dict(info.metadata),
                "pinned": info.pinned,
                "text": info.text,  # read by DocumentDetail only
            }
        )


class DocumentDetail(DocumentSummary):
    """A stored document with its text."""

    text: str


class DocumentList(BaseModel):
    """One page in the order of writing; `next_cursor` is null on the last."""

    documents: list[DocumentSummary]
    next_cursor: str | None


class DocumentRemoved(BaseModel):
    """Answers at or after `bank_version` know nothing of it."""

    id: str
    removed: Literal[True] = True
    bank_version: int


class DocumentsRemoved(BaseModel):
    """Answers at or after `bank_version` know nothing of them."""

    removed: int = Field(description="how many there were")
    bank_version: int


class SourceSpan(BaseModel):
    """Half-open character range in the document's text."""

    model_config = ConfigDict(from_attributes=True)

    start: int
    end: int


class SourceBody(BaseModel):
    """Attribution: a document whose modulation carried the answer, not a proof of it."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    chunk: int
    score: float = Field(description="its share of the attention mass, in [0, 1]")
    title: str | None
    snippet: str
    span: SourceSpan | None = Field(description="where the answer stands literally, if it does")


class UsageBody(BaseModel):
    """Tokens read and written."""

    model_config = ConfigDict(from_attributes=True)

    prompt_tokens: int
    prefix_tokens: int
    completion_tokens: int


class TimingsBody(BaseModel):
    """Milliseconds by phase; a batch shares its phases."""

    model_config = ConfigDict(from_attributes=True)

    queue: float
    select: float
    aggregate: float
    prefill: float
    decode: float


class AskResponse(BaseModel):
    """An answer, what it rests on, and what it cost; or what was read in vain."""

    answer: str | None = Field(
        description="null: abstained; its confidence is below `min_confidence`, or it was empty"
    )
    confidence: float = Field(
        ge=0,
        le=1,
        description="probability that the answer, given or withheld, is right; 0 when it was empty."
        " Where the bundle has no weights for the mode (`model.config.confidence` of /version),"
        " the mean probability of its tokens, which is no such thing. Fitted on single readings",
    )
    sources: list[SourceBody] = Field(
        description="what the answer was made from, also when there is none; spans are null then. "
        "Of several readings those of the one that is given; `usage` counts all"
    )
    num_documents_used: int
    note: str | None = Field(description="set when there is no answer, or no document was used")
    mode: Mode
    bank_version: int
    usage: UsageBody
    timings_ms: TimingsBody
    model: str

    @classmethod
    def of(cls, answer: Answer, *, mode: Mode) -> Self:
        used = len({source.id for source in answer.sources})
        return cls(
            answer=answer.text,
            confidence=answer.confidence,
            sources=[SourceBody.model_validate(source) for source in answer.sources],
            num_documents_used=used,
            note=_note(answer),
            mode=mode,
            bank_version=answer.bank_version,
            usage=UsageBody.model_validate(answer.usage),
            timings_ms=TimingsBody.model_validate(answer.timings_ms),
            model=answer.model,
        )


def _note(answer: Answer) -> str | None:
    if answer.text is None:
        return NO_ANSWER_NOTE if answer.sources else NOTHING_NOTE
    return None if answer.sources else NO_DOCUMENT_NOTE


class Liveness(BaseModel):
    """The process lives; says nothing of the engine."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """What the engine can do now."""

    status: str
    detail: str
    model: str
    documents: int
    chunks: int
    bank_versions: dict[str, int] = Field(
        description="of every namespace that this server follows; deleted ones keep their version"
    )
    store: str = Field(description="kind of the store: sqlite or redis")
    store_state: str = Field(
        description="open; away: questions are answered from the bank, writes get 503"
    )
    lag_versions: int = Field(
        description="what the bank lacks of other servers' writes, in the namespace furthest behind"
    )
    namespace_lag_versions: dict[str, int] = Field(description="the same by namespace")
    lag_s: float = Field(description="for how long the bank has not been known to equal the store")
    corrupt_records: int = Field(
        description="met and left out, and not written anew or removed since"
    )
    queued_questions: int
    queued_documents: int
    queued_jobs: int = Field(description="jobs of all servers that wait for a worker")
    running_jobs: int
    last_step_age_s: float | None


class Version(BaseModel):
    """Which code and which networks answer."""

    version: str
    commit: str | None
    model: dict[str, Any]


class Problem(BaseModel):
    """RFC 9457; `code` is stable, `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None
