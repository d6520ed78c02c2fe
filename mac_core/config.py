"""Frozen, typed configuration; checked once when made. Reads no environment and no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_type_hints

T = TypeVar("T")

Precision = Literal["float32", "bfloat16"]  # of matrix products

# What a confidence is computed from; `mac_core.engine.confidence` says how each is measured.
AnswerFeature = Literal[
    "mean_log_probability",
    "min_log_probability",
    "log_num_tokens",
    "cosine",
    "late",
    "overlap",
    "sentence_overlap",
    "is_literal",
    "null",
]
ANSWER_FEATURES: tuple[AnswerFeature, ...] = get_args(AnswerFeature)

# Of each stored value of a modulation; what each costs in answers: deploy/docs/compaction.md.
ModulationBits = Literal[32, 16, 8, 4, 2]
MODULATION_BITS: tuple[ModulationBits, ...] = get_args(ModulationBits)
DEFAULT_BITS: ModulationBits = 4


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{name}={value} is not positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmortizationConfig:
    """Document -> modulation.

    `t5`: the paper's T5 encoder-decoder over learned tokens; `layerwise`: a bidirectional encoder
    of the base LM's depth whose hidden states of every layer are the modulation; `latent`: the
    states after the encoder's first `depth` layers, one slot per token; `selection_layers` more
    make the selection key.
    """

    kind: Literal["t5", "layerwise", "latent"]
    num_virtual_tokens: int
    d_modulation: int  # t5, latent: the base LM's width; layerwise: layers * width
    max_tokens: int  # tokens of a chunk, special tokens included
    chunk_overlap_tokens: int = 32
    pool: int = 1  # layerwise: neighbouring positions averaged into one slot
    depth: int = 1  # latent: encoder layers below the modulation
    selection_layers: int | None = None  # latent: above it, alone; None: the encoder's others
    # latent: where a document's positions begin. A question's begin at 0; read together they tell
    # the two apart, as those of text in the base LM's prompt do.
    document_position: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, "num_virtual_tokens", "d_modulation", "max_tokens", "pool")
        _check_positive(self, "depth")
        if self.selection_layers is not None:
            _check_positive(self, "selection_layers")
        if self.document_position < 0:
            raise ValueError(f"document_position={self.document_position} is below zero")
        if not 0 <= self.chunk_overlap_tokens < self.max_tokens // 2:
            raise ValueError(
                f"chunk_overlap_tokens={self.chunk_overlap_tokens} is not in "
                f"[0, {self.max_tokens // 2})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """Question + bank -> target modulation.

    `attend`: the paper's cross-attention; `select`: keep the best-scoring slots; `refine`: run
    question and slots through the encoder's upper layers, then keep the best-scoring slots.
    """

    kind: Literal["attend", "select", "refine"]
    d_modulation: int
    d_question: int  # width of the question encoder's states
    # attend over more than `max_group` documents: level by level as the paper, or all at once and
    # exactly, `max_group` documents in memory at a time; select is exact either way.
    reading: Literal["hierarchical", "flat"] = "hierarchical"
    max_group: int = 16  # documents aggregated at once (M)
    num_blocks: int = 4  # refine: the encoder's layers above the modulation
    num_heads: int = 8
    head_dim: int = 96
    d_feedforward: int = 2048
    d_score: int = 64  # select: width of the late interaction
    d_late: int = 0  # refine: width of the late interaction that ranks documents; 0: there is none

    def __post_init__(self) -> None:
        _check_positive(self, "d_modulation", "d_question", "num_blocks", "num_heads", "head_dim")
        _check_positive(self, "d_feedforward", "d_score")
        if self.d_late < 0 or (self.d_late and self.kind != "refine"):
            raise ValueError(f"d_late={self.d_late} does not go with kind={self.kind!r}")
        if self.max_group < 2:
            raise ValueError(f"max_group={self.max_group} is below 2: the hierarchy would not end")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixConfig:
    """Target modulation -> key/value prefix of the base LM.

    `paper`: the whole modulation gives `num_prefix_tokens` positions per layer; `wide`: every
    virtual token is a position of every layer; `layerwise`: a slot's part for layer l goes through
    the base LM's own key and value projections of layer l; `latent`: the best
    `num_prefix_tokens` slots, each through the projections of every layer.
    """

    kind: Literal["paper", "wide", "layerwise", "latent"]
    num_prefix_tokens: int = 2  # paper and latent; wide and layerwise: one per virtual token

    def __post_init__(self) -> None:
        _check_positive(self, "num_prefix_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerConfig:
    """Copy head over the selected documents' tokens (arXiv 1704.04368)."""

    d_pointer: int = 128
    max_documents: int = 32  # copied from, best first, however many are aggregated

    def __post_init__(self) -> None:
        _check_positive(self, "d_pointer")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """Which documents are aggregated.

    Candidates are ranked by dense_scale * cosine + bm25_scale * BM25, and the best of them again
    with late_scale * late interaction added; the log-prior is the log-softmax of that.
    """

    d_key: int
    top_k: int = 4
    dense_scale: float = 20.0
    bm25_scale: float = 0.5
    late_scale: float = 0.0  # 0: candidates are not ranked again
    num_candidates: int = 32  # best of each of dense and BM25 that are fused
    text_top_k: int = 1  # documents whose text enters the prompt in modes text and hybrid
    num_readings: int = 1  # times `top_k` documents read apart, of which the surest answers

    def __post_init__(self) -> None:
        _check_positive(self, "d_key", "top_k", "num_candidates", "text_top_k", "num_readings")
        if min(self.dense_scale, self.bm25_scale, self.late_scale) < 0:
            raise ValueError(
                f"dense_scale={self.dense_scale}, bm25_scale={self.bm25_scale}, "
                f"late_scale={self.late_scale}: below zero"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceWeights:
    """Logistic regression: the probability of being right = sigmoid(bias + weights x features)."""

    weights: Mapping[str, float]  # by `AnswerFeature`; one that is not named weighs nothing
    bias: float
    threshold: float  # the min_confidence that did best on held-out articles, in [0, 1]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(ANSWER_FEATURES))
        if unknown:
            raise ValueError(f"no feature of an answer is called {', '.join(unknown)}")
        for name, value in (*self.weights.items(), ("bias", self.bias)):
            if not isfinite(value):
                raise ValueError(f"{name}={value} is not finite")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold={self.threshold} is not in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceConfig:
    """Calibrated confidence, by what an answer was made from.

    Where there are no weights, the confidence is the mean probability of the answer's tokens.
    """

    none: ConfidenceWeights | None = None  # no document, whatever the mode: an empty bank too
    text: ConfidenceWeights | None = None
    memory: ConfidenceWeights | None = None
    hybrid: ConfidenceWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that, with the weights, makes a bundle."""

    name: str
    amortization: AmortizationConfig
    aggregation: AggregationConfig
    prefix: PrefixConfig
    selection: SelectionConfig
    pointer: PointerConfig | None = None
    confidence: ConfidenceConfig = ConfidenceConfig()
    max_question_tokens: int = 64
    max_text_tokens: int = 320  # document text in the prompt, modes text and hybrid
    # bidirectional: the prompt's tokens see each other both ways, as in a prefix LM (Raffel et al.
    # 2020, arXiv 1910.10683, section 3.2.1); the answer is causal either way.
    prompt_attention: Literal["causal", "bidirectional"] = "causal"

    def __post_init__(self) -> None:
        if self.aggregation.d_modulation != self.amortization.d_modulation:
            raise ValueError(
                f"aggregation.d_modulation={self.aggregation.d_modulation} differs from "
                f"amortization.d_modulation={self.amortization.d_modulation}"
            )
        for kind in ("layerwise", "latent"):
            if (self.prefix.kind == kind) != (self.amortization.kind == kind):
                raise ValueError(
                    f"prefix.kind={self.prefix.kind!r} does not go with "
                    f"amortization.kind={self.amortization.kind!r}"
                )
        if (self.aggregation.kind == "refine") != (self.amortization.kind == "latent"):
            raise ValueError(
                f"aggregation.kind={self.aggregation.kind!r} does not go with "
                f"amortization.kind={self.amortization.kind!r}"
            )
        if self.selection.late_scale and not self.aggregation.d_late:
            raise ValueError(
                f"selection.late_scale={self.selection.late_scale} needs aggregation.d_late above 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """What proposes the chunks nearest to a question; their scores are always computed exactly.

    `exact` and `flat` miss nothing; `ivf` and `hnsw` are quicker in a large bank and may.
    """

    kind: Literal["exact", "flat", "ivf", "hnsw"] = "exact"
    min_chunks: int = 50_000  # in a smaller bank every key is looked at: that is as quick
    probes: int = 32  # ivf: cells looked at
    links: int = 32  # hnsw: of a chunk to others
    ef_construction: int = 64  # hnsw: breadth of the search for them
    ef_search: int = 256  # hnsw: breadth of the search for a question's
    max_removed_share: float = 0.05  # of the index, before it is built anew; in [0, 1)
    directory: str | None = None  # where built ones are kept for the next start; None: nowhere

    def __post_init__(self) -> None:
        _check_positive(self, "min_chunks", "probes", "links", "ef_construction", "ef_search")
        if not 0.0 <= self.max_removed_share < 1.0:
            raise ValueError(f"max_removed_share={self.max_removed_share} is not in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """What each namespace may hold, and what happens to a document that comes when it is full.

    `refuse` it; or remove the `oldest` others, by order of writing; or those whose attention mass
    in answers is least, `least_used`. Pinned documents are never removed.
    """

    max_documents: int | None = None  # None: no limit
    max_bytes: int | None = None  # of quantised modulations
    policy: Literal["refuse", "oldest", "least_used"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("max_documents", "max_bytes"):
            if getattr(self, name) is not None:
                _check_positive(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """How many bytes of modulations stay in RAM; the others are in mapped files."""

    max_ram_bytes: int | None = None  # None: all
    directory: str = "tiers"  # of the files; local, nothing in it outlives the process

    def __post_init__(self) -> None:
        if self.max_ram_bytes is not None and self.max_ram_bytes < 0:
            raise ValueError(f"max_ram_bytes={self.max_ram_bytes} is below zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine runs.

    Only `precision`, `modulation_bits`, or an `index` that misses, can change an answer.
    """

    max_batch_questions: int = 16
    max_batch_chunks: int = 16
    max_read_chunks: int = 1024  # unpacked at once, for one question or for several together
    max_queued_questions: int = 256
    max_queued_documents: int = 1024
    max_queued_jobs: int = 256  # queued or running, of all servers over one store
    job_max_attempts: int = 3
    job_lease_s: float = 30.0  # a server that is silent for longer loses its job to another
    job_retention_s: float = 86_400.0  # how long a job that has ended is kept
    max_document_chars: int = 1_000_000
    default_timeout_ms: float = 60_000.0
    num_threads: int | None = None  # torch intra-op threads; None: torch's own choice
    device: str = "cpu"
    precision: Precision = "float32"
    modulation_bits: ModulationBits = DEFAULT_BITS  # of what is learned from now on
    index: IndexConfig = IndexConfig()
    budget: BudgetConfig = BudgetConfig()
    tiers: TierConfig = TierConfig()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r} is not float32 or bfloat16")
        _check_positive(self, "max_batch_questions", "max_batch_chunks", "max_queued_questions")
        _check_positive(self, "max_queued_documents", "max_document_chars", "default_timeout_ms")
        _check_positive(self, "max_read_chunks")
        if self.modulation_bits not in MODULATION_BITS:
            raise ValueError(f"modulation_bits={self.modulation_bits} is not in {MODULATION_BITS}")
        _check_positive(self, "max_queued_jobs", "job_max_attempts", "job_lease_s")
        _check_positive(self, "job_retention_s")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build `cls` from plain values; nested dataclasses too.

    Raises:
        ValueError: a missing or an unknown key, by name.
    """
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}")
    missing = [
        name
        for name, item in known.items()
        if name not in values and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{cls.__name__} needs {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value) for name, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the dataclass that `hint` (or one arm of its union) names, else unchanged."""
    if isinstance(value, Mapping):
        for arm in (hint, *get_args(hint)):
            if is_dataclass(arm) and isinstance(arm, type):
                return from_dict(arm, value)
    return value
