"""The values that travel between rooms: documents, questions, answers, modulations.

Imports nothing of ours. Tensors appear in `Modulation` only and never leave `mac_core`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_NAMESPACE = "default"

Mode = Literal["none", "text", "memory", "hybrid"]
OnConflict = Literal["upsert", "skip", "fail"]
DocumentStatus = Literal["inserted", "updated", "unchanged", "failed"]
MetadataValue = str | int | float | bool | None
EngineState = Literal["starting", "ready", "draining", "stopped", "failed"]
JobState = Literal["queued", "running", "done", "failed", "cancelled", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text to learn. Without `id`, the id is a hash of namespace and normalised text."""

    text: str
    id: str | None = None
    title: str | None = None
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    published_at: float | None = None  # seconds since the epoch
    ttl_s: float | None = None
    on_conflict: OnConflict = "upsert"
    pinned: bool = False  # never removed to make room


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResult:
    """What became of one document of a batch."""

    id: str
    status: DocumentStatus
    num_chunks: int
    num_tokens: int
    bank_version: int
    error: Exception | None = None  # set exactly when status is "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentInfo:
    """A stored document as the list shows it; `text` only when one document is read."""

    id: str
    namespace: str
    title: str | None
    num_chunks: int
    num_tokens: int
    created_at: float  # seconds since the epoch
    updated_at: float
    published_at: float | None
    expires_at: float | None
    version: int  # the namespace's version that wrote it
    metadata: Mapping[str, MetadataValue]
    text: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPage:
    """One page of the list, in the order in which documents were written."""

    documents: tuple[DocumentInfo, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveResult:
    """Which of the ids were there, and the version without them."""

    removed_ids: tuple[str, ...]
    bank_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceInfo:
    """Size and version of one namespace's bank."""

    namespace: str
    num_documents: int
    num_chunks: int
    num_bytes: int  # stored bytes of records
    bank_version: int
    created_at: float | None = None  # seconds since the epoch; None: the store does not know
    updated_at: float | None = None  # of the last write


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceResult:
    """What became of a namespace that was to be created or deleted."""

    namespace: str
    has_changed: bool  # False: it was there already, or was not there to delete
    num_removed: int  # documents that went with it
    bank_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with everything that decides its answer."""

    text: str
    namespace: str = DEFAULT_NAMESPACE
    mode: Mode = "hybrid"
    top_k: int | None = None  # documents aggregated; None: the bundle's own; 0: the whole bank
    num_readings: int | None = None  # times `top_k` documents read apart; None: the bundle's own
    max_new_tokens: int = 32
    temperature: float = 0.0  # 0: greedy
    seed: int | None = None
    filter: Mapping[str, MetadataValue] = field(default_factory=dict)  # metadata equality
    as_of: float | None = None  # seconds since the epoch: only documents published until then
    min_version: int | None = None
    timeout_ms: float | None = None
    min_confidence: float = 0.0  # in [0, 1]; below it the answer is withheld; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Half-open character range in the source document's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A document that carried the answer; `score` is its attention mass in [0, 1]."""

    id: str
    chunk: int
    score: float
    title: str | None
    snippet: str
    span: Span | None = None  # where the answer stands literally, if it does


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens read and written for one question."""

    prompt_tokens: int
    prefix_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds by phase; phases of a batch are shared by its questions."""

    queue: float = 0.0
    select: float = 0.0
    aggregate: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and what it rests on."""

    text: str | None  # None: abstained; the model wrote nothing, or was not confident enough
    confidence: float  # probability that what was written is right, in [0, 1]; 0: nothing was
    sources: tuple[Source, ...]  # empty: no document was used
    bank_version: int
    usage: Usage
    timings_ms: Timings
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """What one chunk of a document leaves in the bank: its modulation and the keys to find it by.

    Everything here is a function of the chunk alone, never of a question.
    """

    slots: Tensor  # (virtual_tokens, d_modulation), float; virtual_tokens may differ by chunk
    selection_key: Tensor  # (d_selection,), unit length
    token_ids: Tensor  # (tokens,), int64, without special tokens
    token_offsets: Tensor  # (tokens, 2), int64: characters into the chunk's text
    pointer_keys: Tensor | None = None  # (tokens, d_pointer), when the bundle has a pointer head


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which networks made a modulation; another fingerprint's records are refused."""

    amortization_hash: str  # sha256, hex: amortization weights, its configuration, tokenizer
    base_lm_hash: str  # sha256, hex


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotNamespace:
    """One namespace as a snapshot has it."""

    namespace: str
    version: int  # the one that it was copied at
    num_documents: int
    num_bytes: int  # of records


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot holds, as its manifest says."""

    name: str
    format_version: int
    created_at: float  # seconds since the epoch
    store: str  # kind of the store that it was taken of
    fingerprints: tuple[Fingerprint, ...]  # of the records: one, unless re-indexing was under way
    namespaces: tuple[SnapshotNamespace, ...]
    left_out: tuple[tuple[str, str], ...]  # (namespace, id) of records that were corrupt already
    num_bytes: int  # of all files


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What a restore has put in place."""

    bank_versions: Mapping[str, int]  # by namespace
    num_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What became of one document of a job, as it is kept: an error is a name and words."""

    id: str
    status: DocumentStatus
    num_chunks: int = 0
    num_tokens: int = 0
    bank_version: int = 0
    error: str | None = None  # the error's type; set exactly when status is "failed"
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Documents that are learned after their request was answered."""

    id: str
    namespace: str
    state: JobState
    num_documents: int
    attempts: int  # how often a server began to work on it
    reason: str | None  # why it was tried again, or is dead
    created_at: float  # seconds since the epoch
    updated_at: float
    results: tuple[JobResult, ...]  # of the first documents so far, in the order of the request

    @property
    def bank_version(self) -> int:
        """A bank at this version has seen everything that the job has learned so far."""
        return max((result.bank_version for result in self.results), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of the list, the newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceStatus:
    """One namespace as an engine's bank has it; deleted ones keep their version."""

    namespace: str
    bank_version: int = 0
    num_documents: int = 0
    num_chunks: int = 0
    num_bytes: int = 0  # of modulations
    lag_versions: int = 0  # what the bank lacks of what others wrote, when last heard


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The engine's health, readable from any thread."""

    state: EngineState
    detail: str
    model: str
    num_documents: int
    num_chunks: int
    bank_bytes: int
    queued_questions: int
    queued_documents: int
    last_step_age_s: float | None  # None: no step yet
    store: str = "unknown"  # its kind
    store_state: Literal["unknown", "open", "away"] = "unknown"  # away: asks go on from the bank
    lag_versions: int = 0  # of the namespace that is furthest behind
    namespaces: tuple[NamespaceStatus, ...] = ()  # by name; the default one is always there
    num_corrupt: int = 0  # records met and left out, not written anew or removed since
    lag_s: float = 0.0  # for how long the bank has not been known to equal the store
    tier_bytes: Mapping[str, int] = field(default_factory=dict)  # by tier: device, ram, disk
    jobs: Mapping[JobState, int] = field(default_factory=dict)  # by state, when last looked at
    jobs_ended: Mapping[str, int] = field(default_factory=dict)  # by outcome, in this process


class EngineObserver(Protocol):
    """Where the engine reports its figures; the server implements it. Any thread."""

    def observe_phase(self, phase: str, seconds: float) -> None: ...

    def observe_batch(self, lane: str, size: int) -> None: ...

    def count_documents(self, operation: str, amount: int) -> None: ...

    def count_store_error(self, operation: str) -> None: ...
