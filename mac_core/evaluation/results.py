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
    batch_size: int  # what the seconds were taken with, as `num_threads`
    num_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """One mode over all questions."""

    strict_em: Estimate
    prefix_em: Estimate
    f1: Estimate
    f1_shortest: Estimate  # against the shortest reference only, as MAC's table has it
    num_questions: int
    seconds: float | None  # None: some answers took theirs with other threads or batch sizes

    @property
    def questions_per_s(self) -> float | None:
        """None where there is nothing to divide by."""
        return self.num_questions / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where numbers come from."""

    commit: str
    code_sha256: str  # of the package's Python files
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
    num_learned_chunks: int  # the others came from a cache
    learn_seconds: float | None  # of the learned: amortization, packing, publishing; None: none
    results: Mapping[str, ModeResult]  # by mode, in the order asked for
    retrieval: Mapping[str, Mapping[int, Estimate]]  # by way of selecting, then by k
    origin: Origin


def score_mode(
    questions: Sequence[SquadQuestion],
    predictions: Sequence[Prediction],
    *,
    origin: Origin | None = None,
) -> ModeResult:
    """Score the predictions of one mode, which stand in the order of the questions.

    Args:
        origin: what the scores will be reported with; answers kept by a run of other threads or
            another batch size have no seconds beside it.
    """
    pairs = [(p.answer, q.references) for q, p in zip(questions, predictions, strict=True)]
    timed_with = {(made.batch_size, made.num_threads) for made in predictions}
    if origin is not None:
        timed_with.add((origin.batch_size, origin.num_threads))
    seconds = sum(prediction.seconds for prediction in predictions)
    return ModeResult(
        strict_em=wilson([strict_em(*pair) for pair in pairs]),
        prefix_em=wilson([prefix_em(*pair) for pair in pairs]),
        f1=normal([f1(*pair) for pair in pairs]),
        f1_shortest=normal([f1(answer, (shortest(refs),)) for answer, refs in pairs]),
        num_questions=len(pairs),
        seconds=seconds if len(timed_with) == 1 else None,
    )


def score_ranks(ranks: Sequence[int | None]) -> dict[int, Estimate]:
    """Recall at each depth; `ranks` as `metrics.recall_at` takes them."""
    return {k: wilson([recall_at(rank, k) for rank in ranks]) for k in RECALL_DEPTHS}
