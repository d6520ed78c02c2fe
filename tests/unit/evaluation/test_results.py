"""Each score of a mode is of its own kind, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.results import Origin, Prediction, score_mode

REFERENCES = (("the river Elbe there", "Elbe"), ("10",))
ANSWERS = ("the river Elbe", "1000")


def test_exactness_prefix_and_overlap_are_told_apart() -> None:
    # Defect 5: "1000" begins as "10" does, and is not it.
    questions = [
        SquadQuestion(id=str(i), text="?", references=refs, document_id="d")
        for i, refs in enumerate(REFERENCES)
    ]
    predictions = [
        Prediction(
            question_id=str(i),
            answer=answer,
            confidence=0.5,
            seconds=0.5,
            batch_size=4,
            num_threads=1,
        )
        for i, answer in enumerate(ANSWERS)
    ]
    result = score_mode(questions, predictions)
    assert result.strict_em.mean == 0.0
    assert result.prefix_em.mean == 0.5
    # Of all references "river elbe there" is the nearest, of the shortest only "elbe" counts.
    assert result.f1.mean == pytest.approx((2 * 2 / (2 + 3) + 0) / 2)
    assert result.f1_shortest.mean == pytest.approx((2 * 1 / (2 + 1) + 0) / 2)
    assert (result.num_questions, result.questions_per_s) == (2, 2.0)


@pytest.mark.parametrize(
    ("batch_sizes", "threads", "seconds"),
    [((4, 4), (1, 1), 1.0), ((4, 8), (1, 1), None), ((4, 4), (1, 8), None),
     ((8, 8), (1, 1), None), ((4, 4), (8, 8), None)],
)  # fmt: skip
def test_seconds_are_of_the_threads_and_batches_that_stand_beside_them(
    origin: Origin, batch_sizes: Any, threads: Any, seconds: float | None
) -> None:
    questions = [SquadQuestion(id=i, text="?", references=("10",), document_id="d") for i in "ab"]
    predictions = [
        Prediction(
            question_id=i, answer="10", confidence=0.5, seconds=0.5, batch_size=b, num_threads=t
        )
        for i, b, t in zip("ab", batch_sizes, threads, strict=True)
    ]
    assert (origin.batch_size, origin.num_threads) == (4, 1)
    assert score_mode(questions, predictions, origin=origin).seconds == seconds
