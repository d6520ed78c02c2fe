"""One whole run of SQuAD-Seq: learn, ask in every mode, retrieve, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from mac_core.engine.ports import AnsweringModel
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import Track, learn_documents, untracked
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import (
    Evaluation,
    Origin,
    Prediction,
    score_mode,
    score_ranks,
)
from mac_core.memory.bank import MemoryBank
from mac_core.types import Document

DATASET = "squad-seq"


@dataclass(frozen=True, slots=True, kw_only=True)
class SquadSeq:
    """What is asked of which documents."""

    documents: Sequence[Document]
    questions: Sequence[SquadQuestion]
    modes: Sequence[EvaluationMode]
    origin: Origin


def run_squad_seq(
    model: AnsweringModel,
    task: SquadSeq,
    *,
    log: AnswerLog,
    track: Track = untracked,
) -> tuple[Evaluation, dict[str, list[Prediction]]]:
    """Measure, and return the predictions of every mode in the order of the questions.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    origin = task.origin
    bank = MemoryBank(model.config.selection, device=origin.device)
    started = perf_counter()
    view = learn_documents(model, bank, task.documents, batch_size=origin.batch_size, track=track)
    learn_seconds = perf_counter() - started
    asker = Asker(
        model=model,
        bank=bank,
        view=view,
        batch_size=origin.batch_size,
        top_k=origin.top_k,
        max_new_tokens=origin.max_new_tokens,
    )
    num_questions = len(task.questions)
    ranks = asker.rank_all(task.questions, advance=track("retrieve", num_questions))
    predictions: dict[str, list[Prediction]] = {
        mode: asker.answer_all(mode, task.questions, log=log, advance=track(mode, num_questions))
        for mode in task.modes
    }
    evaluation = Evaluation(
        dataset=DATASET,
        num_documents=view.num_documents,
        num_questions=num_questions,
        num_chunks=len(view.entries),
        learn_seconds=learn_seconds,
        results={mode: score_mode(task.questions, made) for mode, made in predictions.items()},
        retrieval={way: score_ranks(found) for way, found in ranks.items()},
        origin=origin,
    )
    return evaluation, predictions
