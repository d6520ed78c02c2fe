"""Each score of a mode is of its own kind, counted by hand."""

from __future__ import annotations

import pytest

from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.results import Prediction, score_mode

REFERENCES = (("the river Elbe there", "Elbe"), ("10",))
ANSWERS = ("the river Elbe", "1000")


def test_exactness_prefix_and_overlap_are_told_apart() -> None:
    # Defect 5: "1000" begins as "10" does, and is not it.
    questions = [
        SquadQuestion(id=str(i), text="?", references=refs, document_id="d")
        for i, refs in enumerate(REFERENCES)
    ]
    predictions = [
        Prediction(question_id=str(i), answer=answer, confidence=0.5, seconds=0.5)
        for i, answer in enumerate(ANSWERS)
    ]
    result = score_mode(questions, predictions)
    assert result.strict_em.mean == 0.0
    assert result.prefix_em.mean == 0.5
    # Of all references "river elbe there" is the nearest, of the shortest only "elbe" counts.
    assert result.f1.mean == pytest.approx((2 * 2 / (2 + 3) + 0) / 2)
    assert result.f1_shortest.mean == pytest.approx((2 * 1 / (2 + 1) + 0) / 2)
    assert (result.num_questions, result.questions_per_s) == (2, 2.0)
