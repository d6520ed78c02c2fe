"""Locality: does a full bank change answers to questions about nothing in it?

Right is what an editing method calls local: `memory` gives the answer that the bare LM gives, or
abstains. Always abstaining would be perfect here, so the same share is measured on questions that
the bank does answer, where it is a loss.
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
from mac_core.evaluation.metrics import Estimate, normal, normalize, wilson
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import Origin, Prediction
from mac_core.types import Document

OUTSIDE, INSIDE = "outside", "inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """What is in the bank, and what is asked about other things and about it."""

    documents: Sequence[Document]
    outside: Sequence[SquadQuestion]  # about nothing in the bank
    inside: Sequence[SquadQuestion]  # about the documents; may be empty
    modes: Sequence[EvaluationMode]
    min_confidence: Mapping[str, float | None]  # by mode; None: nothing is withheld
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityResult:
    """One mode on one kind of questions."""

    mode: str
    asked: str  # outside or inside
    local: Estimate  # the bare LM's answer, or none
    same: Estimate  # the bare LM's answer, whatever the confidence
    abstained: Estimate
    confidence: Estimate
    min_confidence: float | None  # what was withheld by; None: nothing was
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityEvaluation:
    """Every mode on both kinds of questions."""

    results: tuple[LocalityResult, ...]
    num_documents: int
    origin: Origin


def run_locality(
    model: AnsweringModel,
    task: Locality,
    *,
    cache: LearnedCache,
    log: AnswerLog,
    track: Track = untracked,
) -> LocalityEvaluation:
    """Learn everything, then compare each mode with the bare LM.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    origin = task.origin
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
    results: list[LocalityResult] = []
    for asked, questions in ((OUTSIDE, task.outside), (INSIDE, task.inside)):
        if not questions:
            continue
        made = {
            mode: asker.answer_all(
                mode,
                questions,
                log=log,
                log_name=f"{asked}-{mode}",
                advance=track(f"{asked} {mode}", len(questions)),
            )
            for mode in dict.fromkeys(("none", *task.modes))
        }
        results += [
            compare(
                mode,
                asked,
                made[mode],
                bare=made["none"],
                min_confidence=task.min_confidence[mode],
            )
            for mode in task.modes
        ]
    return LocalityEvaluation(
        results=tuple(results),
        num_documents=view.num_documents,
        origin=origin,
    )


def compare(
    mode: str,
    asked: str,
    predictions: Sequence[Prediction],
    *,
    bare: Sequence[Prediction],
    min_confidence: float | None,
) -> LocalityResult:
    """Answers are the same when they are equal after SQuAD's normalisation."""
    same = [
        normalize(made.answer) == normalize(base.answer)
        for made, base in zip(predictions, bare, strict=True)
    ]
    withheld = [abstains(made, min_confidence) for made in predictions]
    return LocalityResult(
        mode=mode,
        asked=asked,
        local=wilson([one or other for one, other in zip(same, withheld, strict=True)]),
        same=wilson(same),
        abstained=wilson(withheld),
        confidence=normal([made.confidence for made in predictions]),
        min_confidence=min_confidence,
        num_questions=len(predictions),
    )
