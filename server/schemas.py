"""Bodies and query strings of the API: types and limits, all of them in /openapi.json.

A field of the wrong type fails its request; whether a text can be learned is the engine's to
say, document by document, so that one empty text of a batch does not fail its neighbours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from mac_core.types import DEFAULT_NAMESPACE, MetadataValue, Mode, OnConflict

MAX_DOCUMENTS = 256
MAX_QUESTION_CHARS = 65_536  # the bundle's limit is in tokens and far below
MAX_METADATA_ENTRIES = 64
METADATA_PREFIX = "metadata."
INT64_MAX = 2**63 - 1


# Pydantic alone would also take seconds since the epoch, as a number or as digits.
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _rfc_3339(value: object) -> object:
    if not isinstance(value, str) or not RFC_3339.fullmatch(value):
        raise ValueError("not an RFC 3339 date and time in a string, such as 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    # Years 1 and 9999 are left out: moved between time zones they leave what datetime holds.
    if not 1 < value.year < 9999:
        raise ValueError(f"year {value.year} is not in [2, 9998]")
    return value.astimezone(UTC)


def _encodable(value: str) -> str:
    # JSON can escape half a surrogate pair; no file, store or answer can hold one.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no character") from None
    return value


def _addressable(value: str) -> str:
    # Clients take `/documents/..` for `/`, and dots have no other spelling. `../a` has: `..%2Fa`.
    if value in (".", ".."):
        raise ValueError("`.` or `..`, which no URL can name")
    return value


def _not_an_integer(value: object) -> object:
    if isinstance(value, int):  # else one beyond 64 bits would quietly lose digits
        raise ValueError("an integer beyond 64 bits")
    return value


def _not_blank(value: str) -> str:
    if not value.strip() or "\x00" in value:
        raise ValueError("must hold text: it is blank or holds a NUL character")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
Timestamp = Annotated[
    AwareDatetime,
    Field(strict=False),  # from text
    BeforeValidator(_rfc_3339),
    AfterValidator(_in_utc),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Namespace = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
DocumentId = Annotated[
    Text,
    AfterValidator(_addressable),
    Field(
        min_length=1,
        max_length=256,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        examples=["guide/1"],
        description="not `.` or `..`: clients resolve them in a URL, and between slashes that are "
        "not percent-encoded, too",
    ),
]
MetadataEntry = (
    Annotated[StrictStr, AfterValidator(_encodable), Field(max_length=2048)]
    | StrictBool
    | Annotated[StrictInt, Field(ge=-INT64_MAX, le=INT64_MAX)]
    | Annotated[StrictFloat, BeforeValidator(_not_an_integer), Field(allow_inf_nan=False)]
    | None
)
Metadata = Annotated[
    dict[Annotated[Text, Field(min_length=1, max_length=128)], MetadataEntry],
    Field(max_length=MAX_METADATA_ENTRIES),
]


class Body(BaseModel):
    """No unknown field, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class DocumentBody(Body):
    """One document to learn; without `id`, the id is a hash of namespace and text."""

    # An empty text is refused by the engine, see the head of this file.
    text: Text = Field(
        json_schema_extra={"minLength": 1},
        description="the same document under the same id is `unchanged` and not learned again; any "
        "difference, in title, metadata or the text's whitespace too, is an update",
    )
    id: DocumentId | None = None
    title: Text | None = Field(default=None, max_length=512)
    metadata: Metadata = Field(default_factory=dict)
    published_at: Timestamp | None = Field(
        default=None,
        description="of competing documents the one published last answers, and `as_of` leaves out"
        " those published later; null: not dated, so in no competition and never left out",
    )
    namespace: Namespace | None = Field(default=None, description='"default" when not given')
    ttl_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3_153_600_000,
        description="forgotten after; counted anew, as an update, whenever the document comes",
    )
    on_conflict: OnConflict = "upsert"
    pinned: bool = Field(
        default=False, description="never removed to make room; DELETE and ttl_seconds still do"
    )


class DocumentsBody(Body):
    """Up to 256 documents of one namespace."""

    documents: list[DocumentBody] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    namespace: Namespace | None = Field(default=None, description='"default" when not given')

    @model_validator(mode="after")
    def _one_namespace(self) -> Self:
        names = sorted(self._namespaces())
        if len(names) > 1:
            raise ValueError(f"documents of one batch go to one namespace, got {names[:3]}")
        return self

    def _namespaces(self) -> set[str]:
        given = self.namespace or DEFAULT_NAMESPACE
        names = {document.namespace or given for document in self.documents}
        return names | {self.namespace} if self.namespace else names

    def resolved_namespace(self) -> str:
        return min(self._namespaces())


def _shape(value: Any) -> str:
    if isinstance(value, DocumentsBody):
        return "batch"
    return "batch" if isinstance(value, Mapping) and "documents" in value else "document"


AddBody = Annotated[
    Annotated[DocumentBody, Tag("document")] | Annotated[DocumentsBody, Tag("batch")],
    Discriminator(_shape),
]


class NoQuery(BaseModel):
    """No query parameter is known here; any is refused, by name."""

    model_config = ConfigDict(extra="forbid")


class AddQuery(BaseModel):
    """Whether the answer waits until the documents are learned."""

    model_config = ConfigDict(extra="forbid")

    wait: bool = Field(
        default=True, description="false: 202 at once, and the outcome under `/jobs/{id}`"
    )


class BulkQuery(AddQuery):
    """Of a streamed body; `wait` is known so that its refusal can say why."""

    namespace: Namespace | None = None


class NamespaceQuery(BaseModel):
    """Which namespace."""

    model_config = ConfigDict(extra="forbid")

    namespace: Namespace = DEFAULT_NAMESPACE


class FilterQuery(BaseModel):
    """Namespace, and `metadata.KEY=VALUE` filters."""

    model_config = ConfigDict(extra="allow")

    namespace: Namespace = DEFAULT_NAMESPACE

    @model_validator(mode="after")
    def _only_metadata(self) -> Self:
        extra = self.model_extra or {}
        unknown = [name[:100] for name in extra if not name.startswith(METADATA_PREFIX)]
        if unknown:
            raise ValueError(f"unknown query parameter {unknown[0]!r}")
        repeated = [name[:100] for name, value in extra.items() if not isinstance(value, str)]
        if repeated:
            raise ValueError(f"query parameter {repeated[0]!r} is given more than once")
        return self

    def filter(self) -> dict[str, MetadataValue]:
        """Metadata equality; a value is a JSON scalar where it is one, else text as it stands."""
        return {
            name.removeprefix(METADATA_PREFIX): _scalar(value)
            for name, value in (self.model_extra or {}).items()
        }


class ListQuery(FilterQuery):
    """Paging, namespace, and `metadata.KEY=VALUE` filters."""

    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = Field(default=None, max_length=1024)


class RemoveQuery(FilterQuery):
    """Namespace, and at least one `metadata.KEY=VALUE` filter."""

    @model_validator(mode="after")
    def _not_everything(self) -> Self:
        if not self.model_extra:
            raise ValueError(
                "say which documents: metadata.KEY=VALUE; DELETE /namespaces/{name} forgets all"
            )
        return self


def _scalar(text: str) -> MetadataValue:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not isfinite(value):
        return text
    return value if isinstance(value, str | int | float | bool | None) else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class AskBody(Body):
    """One question and everything that decides its answer."""

    question: Annotated[Text, AfterValidator(_not_blank)] = Field(
        min_length=1,
        max_length=MAX_QUESTION_CHARS,
        description="characters as given here, and at most `model.config.max_question_tokens` of"
        " /version in tokens (`x-max-question-tokens` of this document's `info`, null while the"
        " model loads); more of either is 422 `question_too_long`",
    )
    namespace: Namespace = DEFAULT_NAMESPACE
    mode: Mode = "hybrid"
    top_k: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="chunks aggregated in modes memory and hybrid, 0: the whole bank; more than "
        "MAC_MAX_READ_CHUNKS (1024) at once are 422 `invalid_input`. Not of the "
        "texts in the prompt: in hybrid and text they are the bundle's `text_top_k`, "
        "`model.config.selection.text_top_k` of /version",
    )
    num_readings: int | None = Field(
        default=None,
        ge=1,
        le=8,
        description="the best chunks are read apart, `top_k` (in text `text_top_k`) at a time and "
        "at most so many times, further ones where they have a fifth of the prior so far; the "
        "surest answer is given. null: the server's MAC_NUM_READINGS, else the bundle's",
    )
    filter: Metadata = Field(default_factory=dict, description="metadata equality")
    as_of: Timestamp | None = Field(
        default=None,
        description="read only documents with `published_at` at or before this time, and those"
        " without one. It is no history: the bank is read as it is now, so a text that was replaced"
        " under its id, deleted or is expired does not come back, and when a document was posted"
        " does not matter. For questions as of a time, post each version under an id of its own",
    )
    max_new_tokens: int = Field(default=32, ge=1, le=256)
    temperature: float = Field(default=0.0, ge=0, le=2, description="0: greedy")
    seed: int | None = Field(default=None, ge=0, le=INT64_MAX)
    min_version: int | None = Field(
        default=None, ge=0, le=INT64_MAX, description="wait for this bank version, then 409"
    )
    timeout_ms: float | None = Field(
        default=None,
        gt=0,
        le=600_000,
        description="then 504; null: the server's MAC_DEFAULT_TIMEOUT_MS",
    )
    min_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="below this confidence `answer` is null; null: the server's MAC_MIN_CONFIDENCE",
    )
