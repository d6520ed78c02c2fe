"""Unanswerable questions (SQuAD 2.0, arXiv 1806.03822): does the confidence know what it knows?

All documents are in one bank. A question is called unanswerable by its own paragraph; that another
document of the bank answers it is possible, and counts against the model all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mac_core.engine.ports import AnsweringModel
from mac_core.evaluation.abstention import abstains
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import Track, untracked
from mac_core.evaluation.learned_cache import GrowingBank, LearnedCache
from mac_core.evaluation.metrics import Estimate, f1, normal, strict_em, wilson
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import Origin, Prediction
from mac_core.evaluation.selective import (
    CurvePoint,
    area_under_risk,
    auroc,
    coverage_at,
    coverage_at_interval,
    risk_coverage,
)
from mac_core.types import Document

TARGET_PRECISION = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswerable:
    """What is asked of which documents; questions without references have no answer."""

    documents: Sequence[Document]
    questions: Sequence[SquadQuestion]
    modes: Sequence[EvaluationMode]
    min_confidence: Mapping[str, float | None]  # by mode; None: nothing is withheld
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class AtThreshold:
    """What a caller gets who withholds answers below `min_confidence`."""

    min_confidence: float
    coverage: Estimate  # answered, of all
    precision: Estimate | None  # strictly right, of the answered; None: nothing is answered
    answerable_answered: Estimate | None
    unanswerable_withheld: Estimate | None
    squad2_em: Estimate  # SQuAD 2.0's own: withholding is right exactly where there is no answer
    squad2_f1: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSelectivity:
    """One mode over all questions; an answer to an unanswerable question is always wrong."""

    auroc_answerable: Estimate  # answerable against unanswerable
    auroc_right: Estimate  # right answers against wrong ones
    area_under_risk: float  # mean risk over all coverages, in [0, 1]
    coverage_at_target: Estimate  # most coverage at a precision of TARGET_PRECISION
    threshold_at_target: float | None  # where that is; None: nowhere
    everything: AtThreshold  # nothing withheld: the baseline
    at_bundle: AtThreshold | None  # None: the bundle brings no threshold and none was given
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnanswerableEvaluation:
    """Every mode."""

    results: dict[str, ModeSelectivity]
    num_documents: int
    num_answerable: int
    num_unanswerable: int
    origin: Origin


def run_unanswerable(
    model: AnsweringModel,
    task: Unanswerable,
    *,
    cache: LearnedCache,
    log: AnswerLog,
    track: Track = untracked,
) -> tuple[UnanswerableEvaluation, dict[str, list[Prediction]]]:
    """Learn everything, ask everything, and return the predictions of every mode too.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    origin, asked = task.origin, task.questions
    growing = GrowingBank(
        model, cache=cache, batch_size=origin.batch_size, device=origin.device, track=track
    )
    view = growing.add(task.documents)
    asker = Asker(
        model=model,
        bank=growing.bank,
        view=view,
        batch_size=origin.batch_size,
        top_k=origin.top_k,
        num_readings=origin.num_readings,
        max_new_tokens=origin.max_new_tokens,
    )
    predictions: dict[str, list[Prediction]] = {
        mode: asker.answer_all(mode, asked, log=log, advance=track(mode, len(asked)))
        for mode in task.modes
    }
    num_answerable = sum(bool(question.references) for question in asked)
    evaluation = UnanswerableEvaluation(
        results={
            mode: score_selectivity(
                asked, made, min_confidence=task.min_confidence[mode], seed=origin.seed
            )
            for mode, made in predictions.items()
        },
        num_documents=view.num_documents,
        num_answerable=num_answerable,
        num_unanswerable=len(asked) - num_answerable,
        origin=origin,
    )
    return evaluation, predictions


def score_selectivity(
    questions: Sequence[SquadQuestion],
    predictions: Sequence[Prediction],
    *,
    min_confidence: float | None,
    seed: int,
) -> ModeSelectivity:
    """Score one mode's predictions, which stand in the order of the questions.

    Args:
        seed: of the bootstrap.
    """
    pairs = list(zip(questions, predictions, strict=True))
    right = [is_right(question, made) for question, made in pairs]
    confidences = [made.confidence for made in predictions]
    curve = risk_coverage(confidences, right)
    best = coverage_at(curve, precision=TARGET_PRECISION)
    return ModeSelectivity(
        auroc_answerable=auroc(
            [made.confidence for question, made in pairs if question.references],
            [made.confidence for question, made in pairs if not question.references],
        ),
        auroc_right=auroc(
            [score for score, hit in zip(confidences, right, strict=True) if hit],
            [score for score, hit in zip(confidences, right, strict=True) if not hit],
        ),
        area_under_risk=area_under_risk(curve),
        coverage_at_target=coverage_at_interval(
            confidences, right, precision=TARGET_PRECISION, seed=seed
        ),
        threshold_at_target=None if best is None else best.threshold,
        everything=at_threshold(questions, predictions, min_confidence=0.0),
        at_bundle=None
        if min_confidence is None
        else at_threshold(questions, predictions, min_confidence=min_confidence),
        curve=tuple(curve),
    )


def is_right(question: SquadQuestion, made: Prediction) -> bool:
    """Strictly equal to a reference; whatever is answered where there is none is wrong."""
    return strict_em(made.answer, question.references)


def at_threshold(
    questions: Sequence[SquadQuestion],
    predictions: Sequence[Prediction],
    *,
    min_confidence: float,
) -> AtThreshold:
    """What withholding every answer below `min_confidence` gives."""
    rows = [
        (question, made, abstains(made, min_confidence))
        for question, made in zip(questions, predictions, strict=True)
    ]
    return AtThreshold(
        min_confidence=min_confidence,
        coverage=wilson([not withheld for _, _, withheld in rows]),
        precision=_share([is_right(q, made) for q, made, withheld in rows if not withheld]),
        answerable_answered=_share([not withheld for q, _, withheld in rows if q.references]),
        unanswerable_withheld=_share([withheld for q, _, withheld in rows if not q.references]),
        squad2_em=wilson(
            [is_right(q, made) if not withheld else not q.references for q, made, withheld in rows]
        ),
        squad2_f1=normal([_squad2_f1(*row) for row in rows]),
    )


def _squad2_f1(question: SquadQuestion, made: Prediction, withheld: bool) -> float:
    if withheld or not question.references:
        return float(withheld and not question.references)
    return f1(made.answer, question.references)


def _share(hits: Sequence[bool]) -> Estimate | None:
    return wilson(hits) if hits else None
