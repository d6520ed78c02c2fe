from dataclasses import replace
from typing import Any

import pytest

from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned_cache import LearnedCache
from mac_core.evaluation.results import Origin
from mac_core.evaluation.unanswerable import (
    Unanswerable,
    at_threshold,
    run_unanswerable,
    score_selectivity,
)
from mac_core.evaluation.unanswerable_report import at_coverages
from mac_core.types import Document
from tests.unit.evaluation.conftest import said


def asked(*references: tuple[str, ...]) -> list[SquadQuestion]:
    return [
        SquadQuestion(id=str(i), text="?", references=refs, document_id="d")
        for i, refs in enumerate(references)
    ]


# right and sure; half right; right but unsure; unanswerable and sure; unanswerable and unsure
QUESTIONS = asked(("Ulm",), ("New York",), ("Bath",), (), ())
SAID = said(("Ulm", 0.9), ("York", 0.6), ("Bath", 0.3), ("Rome", 0.8), ("Oslo", 0.2))


def test_withholding_is_right_exactly_where_there_is_no_answer() -> None:
    found = at_threshold(QUESTIONS, SAID, min_confidence=0.5)
    assert found.coverage.mean == 0.6  # Ulm, York, Rome
    assert found.precision is not None
    assert found.precision.mean == pytest.approx(1 / 3)
    assert found.answerable_answered is not None
    assert found.answerable_answered.mean == pytest.approx(2 / 3)
    assert found.unanswerable_withheld is not None
    assert found.unanswerable_withheld.mean == 0.5
    assert found.squad2_em.mean == 0.4  # Ulm, and Oslo withheld
    assert found.squad2_f1.mean == pytest.approx((1 + 2 / 3 + 0 + 0 + 1) / 5)


def test_an_answer_that_only_begins_right_is_wrong() -> None:
    # Defect 5: a prefix counted as an exact match.
    found = at_threshold(asked(("10",)), said(("1000", 0.9)), min_confidence=0.0)
    assert found.squad2_em.mean == 0.0
    assert found.precision is not None
    assert found.precision.mean == 0.0


def test_answering_everything_scores_no_unanswerable_question() -> None:
    found = at_threshold(QUESTIONS, SAID, min_confidence=0.0)
    assert (found.coverage.mean, found.squad2_em.mean) == (1.0, 0.4)


def test_nothing_answered_has_no_precision() -> None:
    found = at_threshold(QUESTIONS, SAID, min_confidence=1.0)
    assert found.precision is None
    assert found.squad2_em.mean == 0.4


def test_one_modes_scores_by_hand() -> None:
    result = score_selectivity(QUESTIONS, SAID, min_confidence=0.5, seed=0)
    # answerable 0.9 0.6 0.3 against 0.8 0.2: four of six pairs; right 0.9 0.3 against
    # 0.8 0.6 0.2: four of six
    assert result.auroc_answerable.mean == pytest.approx(4 / 6)
    assert result.auroc_right.mean == pytest.approx(4 / 6)
    assert result.coverage_at_target.mean == 0.2
    assert result.threshold_at_target == 0.9
    assert [round(point.precision, 2) for point in result.curve] == [1.0, 0.5, 0.33, 0.5, 0.4]
    assert result.at_bundle is not None
    assert result.at_bundle.min_confidence == 0.5


def test_without_a_threshold_there_are_no_figures_at_it() -> None:
    result = score_selectivity(QUESTIONS, SAID, min_confidence=None, seed=0)
    assert result.at_bundle is None
    assert result.everything.coverage.mean == 1.0


def test_the_printed_curve_ends_where_everything_is_answered() -> None:
    curve = score_selectivity(QUESTIONS * 40, SAID * 40, min_confidence=None, seed=0).curve
    assert at_coverages(curve) == list(curve)
    assert at_coverages(curve)[-1].coverage == 1.0


@pytest.fixture
def task(documents: list[Document], questions: Any, origin: Origin) -> Unanswerable:
    """Half of the questions have no answer; a perfect reader answers them all the same."""
    return Unanswerable(
        documents=documents,
        questions=[*questions[:3], *(replace(q, references=()) for q in questions[3:])],
        modes=("memory", "hybrid"),
        min_confidence={"memory": 0.5, "hybrid": None},
        origin=origin,
    )


def test_a_whole_run_tells_answerable_questions_apart(reader: Any, task: Unanswerable) -> None:
    reader.confidences = {
        question.text: 0.9 if question.references else 0.1 for question in task.questions
    }
    with LearnedCache(None, fingerprint=reader.fingerprint) as cache:
        evaluation, predictions = run_unanswerable(
            reader, task, cache=cache, log=AnswerLog(None, run={})
        )
    assert (evaluation.num_answerable, evaluation.num_unanswerable) == (3, 3)
    memory, hybrid = evaluation.results["memory"], evaluation.results["hybrid"]
    assert memory.auroc_answerable.mean == memory.auroc_right.mean == 1.0
    assert memory.coverage_at_target.mean == 0.5
    assert memory.everything.squad2_em.mean == 0.5
    assert memory.at_bundle is not None
    assert memory.at_bundle.squad2_em.mean == 1.0
    assert hybrid.at_bundle is None
    assert [p.answer for p in predictions["memory"]][:3] == ["Ulm", "Oslo", "Rome"]
