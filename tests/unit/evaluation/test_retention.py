from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mac_core.errors import InvalidInput
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.learned_cache import LearnedCache
from mac_core.evaluation.results import Origin
from mac_core.evaluation.retention import Retention, RetentionResult, run_retention
from mac_core.types import Document


@pytest.fixture
def task(documents: list[Document], questions: Any, origin: Origin) -> Retention:
    return Retention(
        documents=documents,
        questions=questions[:2],
        sizes=(2, 4, 6),
        modes=("memory", "none"),
        origin=replace(origin, top_k=1),
    )


def run(reader: Any, task: Retention, log: AnswerLog | None = None) -> RetentionResult:
    with LearnedCache(None, fingerprint=reader.fingerprint) as cache:
        return run_retention(reader, task, cache=cache, log=log or AnswerLog(None, run={}))


def curve(result: RetentionResult, mode: str) -> list[tuple[int, float]]:
    return [(s.num_documents, s.strict_em.mean) for s in result.sizes if s.mode == mode]


def test_a_perfect_reader_retains_everything(reader: Any, task: Retention) -> None:
    result = run(reader, task)
    assert curve(result, "memory") == [(2, 1.0), (4, 1.0), (6, 1.0)]
    assert {s.f1_ratio.mean for s in result.sizes if s.mode == "memory"} == {1.0}
    assert {s.recall[1].mean for s in result.sizes} == {1.0}
    assert result.num_questions == 2


def test_an_answer_that_only_begins_right_is_wrong(reader: Any, task: Retention) -> None:
    # Defect 5: a prefix counted as an exact match. The reader answers "ulm" and "oslo".
    cut = tuple(replace(q, references=(q.references[0][:2],)) for q in task.questions)
    assert [mean for _, mean in curve(run(reader, replace(task, questions=cut)), "memory")] == [
        0.0,
        0.0,
        0.0,
    ]


def test_modes_stand_one_after_the_other(reader: Any, task: Retention) -> None:
    assert [s.mode for s in run(reader, task).sizes] == ["memory"] * 3 + ["none"] * 3


def test_the_bank_grows_and_each_document_is_learned_once(reader: Any, task: Retention) -> None:
    run(reader, task)
    assert reader.num_amortized == [2, 2, 2]


def test_a_distractor_that_takes_the_place_of_the_right_document_costs(
    reader: Any, task: Retention
) -> None:
    # As near as the right ones, chosen for having more of the question's words, and silent.
    documents = [
        *task.documents[:2],
        *(
            Document(id=f"thief{i}", text=f"Where {'indeed ' * 6}does Ada dwell ?")
            for i in range(2)
        ),
    ]
    spoilt = replace(task, documents=documents, sizes=(2, 4), modes=("memory",))
    reader.amortize = lambda chunks: [
        replace(m, token_ids=m.token_ids * 0) if "dwell" in chunk else m
        for chunk, m in zip(chunks, type(reader).amortize(reader, chunks), strict=True)
    ]
    before, after = run(reader, spoilt).sizes
    assert (before.f1.mean, after.f1.mean) == (1.0, 0.5)
    assert after.f1_ratio.mean == 0.5
    assert after.recall[1].mean == 0.5


def test_the_ratio_is_to_the_first_size_of_the_same_mode(reader: Any, task: Retention) -> None:
    ratios = [s.f1_ratio.mean for s in run(reader, task).sizes if s.mode == "none"]
    assert ratios == [float("inf")] * 3  # the bare LM knows nothing: no ratio to it


def test_answers_of_each_size_are_kept_apart_and_not_asked_again(
    reader: Any, task: Retention, tmp_path: Path
) -> None:
    log = AnswerLog(tmp_path, run={})
    first = run(reader, task, log)
    assert len(log.read("memory-2")) == len(log.read("memory-6")) == 2
    reader.batches.clear()
    assert run(reader, task, log).sizes == first.sizes
    assert reader.batches == []


@pytest.mark.parametrize("sizes", [(), (0, 2), (4, 2), (2, 2), (2, 7)])
def test_sizes_that_no_bank_can_have_are_refused(task: Retention, sizes: Any) -> None:
    with pytest.raises(InvalidInput):
        replace(task, sizes=sizes)
