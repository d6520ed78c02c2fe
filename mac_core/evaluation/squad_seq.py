"""One whole run of SQuAD-Seq: learn, ask in every mode, retrieve, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mac_core.engine.ports import AnsweringModel
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import Track, untracked
from mac_core.evaluation.learned_cache import GrowingBank, LearnedCache
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import (
    Evaluation,
    Origin,
    Prediction,
    score_mode,
    score_ranks,
)
from mac_core.types import Document

DATASET = "squad-seq"


@dataclass(frozen=True, slots=True, kw_only=True)
class SquadSeq:
    """What is asked of which documents."""

    documents: Sequence[Document]
    questions: Sequence[SquadQuestion]
    modes: Sequence[EvaluationMode]
    origin: Origin
    dataset: str = DATASET  # what the report calls it


def run_squad_seq(
    model: AnsweringModel,
    task: SquadSeq,
    *,
    log: AnswerLog,
    cache: LearnedCache | None = None,
    track: Track = untracked,
) -> tuple[Evaluation, dict[str, list[Prediction]]]:
    """Measure, and return the predictions of every mode in the order of the questions.

    Args:
        cache: learned documents of earlier runs; what is read from it was not learned now.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    origin = task.origin
    growing = GrowingBank(
        model,
        cache=cache or LearnedCache(None, fingerprint=model.fingerprint),
        batch_size=origin.batch_size,
        device=origin.device,
        track=track,
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
    num_questions = len(task.questions)
    ranks = asker.rank_all(task.questions, advance=track("retrieve", num_questions))
    predictions: dict[str, list[Prediction]] = {
        mode: asker.answer_all(mode, task.questions, log=log, advance=track(mode, num_questions))
        for mode in task.modes
    }
    evaluation = Evaluation(
        dataset=task.dataset,
        num_documents=view.num_documents,
        num_questions=num_questions,
        num_chunks=len(view.entries),
        num_learned_chunks=growing.num_learned_chunks,
        learn_seconds=growing.learn_seconds,
        results={
            mode: score_mode(task.questions, made, origin=origin)
            for mode, made in predictions.items()
        },
        retrieval={way: score_ranks(found) for way, found in ranks.items()},
        origin=origin,
    )
    return evaluation, predictions
