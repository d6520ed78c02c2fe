"""What an evaluation measured, with what is needed to repeat or doubt it.

Means become percentages here and only here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.metrics import (
    Estimate,
    f1,
    normal,
    prefix_em,
    recall_at,
    shortest,
    strict_em,
    wilson,
)

RECALL_DEPTHS = (1, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer and its share of the time its batch took."""

    question_id: str
    answer: str
    confidence: float  # as the engine answers it, in [0, 1]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """One mode over all questions."""

    strict_em: Estimate
    prefix_em: Estimate
    f1: Estimate
    f1_shortest: Estimate  # against the shortest reference only, as MAC's table has it
    num_questions: int
    seconds: float

    @property
    def questions_per_s(self) -> float:
        return self.num_questions / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where numbers come from."""

    commit: str
    bundle: str
    config_fingerprint: str
    amortization_hash: str
    base_lm_hash: str
    data_file: str
    data_sha256: str
    seed: int
    top_k: int
    num_readings: int
    batch_size: int
    max_new_tokens: int
    device: str
    num_threads: int
    precision: str
    date: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One run of a protocol."""

    dataset: str
    num_documents: int
    num_questions: int
    num_chunks: int
    learn_seconds: float  # all documents: amortization, packing and publishing
    results: Mapping[str, ModeResult]  # by mode, in the order asked for
    retrieval: Mapping[str, Mapping[int, Estimate]]  # by way of selecting, then by k
    origin: Origin


def score_mode(questions: Sequence[SquadQuestion], predictions: Sequence[Prediction]) -> ModeResult:
    """Score the predictions of one mode, which stand in the order of the questions."""
    pairs = [(p.answer, q.references) for q, p in zip(questions, predictions, strict=True)]
    return ModeResult(
        strict_em=wilson([strict_em(*pair) for pair in pairs]),
        prefix_em=wilson([prefix_em(*pair) for pair in pairs]),
        f1=normal([f1(*pair) for pair in pairs]),
        f1_shortest=normal([f1(answer, (shortest(refs),)) for answer, refs in pairs]),
        num_questions=len(pairs),
        seconds=sum(prediction.seconds for prediction in predictions),
    )


def score_ranks(ranks: Sequence[int | None]) -> dict[int, Estimate]:
    """Recall at each depth; `ranks` as `metrics.recall_at` takes them."""
    return {k: wilson([recall_at(rank, k) for rank in ranks]) for k in RECALL_DEPTHS}
