from dataclasses import replace
from typing import Any

import pytest

from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned_cache import LearnedCache
from mac_core.evaluation.locality import Locality, LocalityEvaluation, compare, run_locality
from mac_core.evaluation.results import Origin
from mac_core.types import Document
from tests.unit.evaluation.conftest import said


@pytest.fixture
def outside() -> list[SquadQuestion]:
    return [
        SquadQuestion(id=f"o{i}", text=f"Who is {name}?", references=("me",), document_id="x")
        for i, name in enumerate(("Gina", "Hugo"))
    ]


@pytest.fixture
def task(documents: list[Document], questions: Any, outside: Any, origin: Origin) -> Locality:
    return Locality(
        documents=documents,
        outside=outside,
        inside=questions[:3],
        modes=("memory",),
        min_confidence={"memory": None},
        origin=origin,
    )


def run(reader: Any, task: Locality) -> LocalityEvaluation:
    with LearnedCache(None, fingerprint=reader.fingerprint) as cache:
        return run_locality(reader, task, cache=cache, log=AnswerLog(None, run={}))


def test_a_perfect_reader_keeps_to_the_bare_lm_outside_and_only_there(
    reader: Any, task: Locality
) -> None:
    outside, inside = run(reader, task).results
    assert (outside.asked, outside.local.mean, outside.num_questions) == ("outside", 1.0, 2)
    assert (inside.asked, inside.local.mean, inside.num_questions) == ("inside", 0.0, 3)
    assert outside.abstained.mean == inside.abstained.mean == 0.0


def test_withholding_everything_is_seen_to_cost_inside(reader: Any, task: Locality) -> None:
    reader.confidences = {q.text: 0.1 for q in [*task.outside, *task.inside]}
    outside, inside = run(reader, replace(task, min_confidence={"memory": 0.2})).results
    assert (outside.local.mean, inside.local.mean) == (1.0, 1.0)
    assert inside.abstained.mean == 1.0
    assert inside.same.mean == 0.0


def test_without_questions_inside_there_is_no_row_for_them(reader: Any, task: Locality) -> None:
    assert [r.asked for r in run(reader, replace(task, inside=())).results] == ["outside"]


def test_shares_by_hand() -> None:
    # the same after normalisation; another but withheld; another; the same and withheld
    made = said(("The Rhine.", 0.9), ("Ulm", 0.1), ("Ulm", 0.9), ("rome", 0.1))
    bare = said(("rhine", 0.0), ("Rome", 0.0), ("Rome", 0.0), ("Rome", 0.0))
    result = compare("memory", "outside", made, bare=bare, min_confidence=0.5)
    assert (result.same.mean, result.abstained.mean, result.local.mean) == (0.5, 0.5, 0.75)
    assert result.confidence.mean == pytest.approx(0.5)
