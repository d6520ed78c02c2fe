from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.errors import InvalidInput
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.compaction import CompactionResult, CompactionTask, run_compaction
from mac_core.evaluation.learned_cache import LearnedCache
from mac_core.evaluation.results import Origin
from mac_core.memory.compaction import parse_compaction
from mac_core.types import Document

THIRD = 1 / 3  # no number of bits below 32 holds it


@pytest.fixture
def task(documents: list[Document], questions: Any, origin: Origin) -> CompactionTask:
    return CompactionTask(
        documents=documents,
        questions=questions,
        settings=[parse_compaction(name) for name in ("bits:1", "bits:4", "average:32@8")],
        origin=replace(origin, top_k=1),
    )


@pytest.fixture
def slotted(reader: Any) -> Any:
    """The perfect reader with a slot for each word."""
    kind = type(reader)
    reader.amortize = lambda chunks: [
        replace(m, slots=torch.full((len(m.token_ids), 4), THIRD))
        for m in kind.amortize(reader, chunks)
    ]
    return reader


def run(
    reader: Any, task: CompactionTask, log: AnswerLog | None = None, cache: Path | None = None
) -> CompactionResult:
    with LearnedCache(cache, fingerprint=reader.fingerprint, bits=32) as kept:
        return run_compaction(reader, task, cache=kept, log=log or AnswerLog(None, run={}))


def test_a_reader_that_needs_only_the_tokens_loses_nothing(
    slotted: Any, task: CompactionTask
) -> None:
    result = run(slotted, task)
    assert [one.setting.name for one in result.settings] == ["bits:1", "bits:4", "average:32@8"]
    assert {one.f1.mean for one in result.settings} == {1.0}
    assert {one.f1_gain.mean for one in result.settings} == {0.0}
    assert {one.same_answers for one in result.settings} == {1.0}
    assert (result.num_documents, result.num_questions) == (6, 6)


def test_smaller_settings_are_smaller_and_records_hold_the_text_too(
    slotted: Any, task: CompactionTask
) -> None:
    sizes = [one.modulation_bytes for one in run(slotted, task).settings]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(one.record_bytes > one.modulation_bytes for one in run(slotted, task).settings)


def test_what_a_setting_costs_is_paired_by_question(slotted: Any, task: CompactionTask) -> None:
    kind = type(slotted)

    def generated(request: Any) -> Any:
        made = kind._generated(slotted, request)
        exact = torch.tensor(THIRD)
        is_rounded = any(bool((m.slots != exact).any()) for m in request.modulations)
        spoilt = is_rounded and "Ada" in request.question
        return replace(made, text="nowhere" if spoilt else made.text)

    slotted._generated = generated
    exact, rounded, shared = run(slotted, task).settings
    assert (exact.f1.mean, exact.same_answers) == (1.0, 1.0)
    assert rounded.f1_gain.mean == pytest.approx(-1 / 6)
    assert rounded.f1_gain.low < rounded.f1_gain.mean < rounded.f1_gain.high
    assert rounded.em_gain.mean == pytest.approx(-1 / 6)
    assert rounded.same_answers == shared.same_answers == pytest.approx(5 / 6)


def test_a_codebook_is_counted_once(slotted: Any, task: CompactionTask) -> None:
    coded = replace(task, settings=[parse_compaction("bits:1"), parse_compaction("codebook:8")])
    plain, book = run(slotted, coded).settings
    assert (plain.codebook_bytes, book.codebook_bytes) == (0, 256 * 4 * 2)


def test_documents_are_learned_once_and_in_float32(
    slotted: Any, task: CompactionTask, tmp_path: Path
) -> None:
    first = run(slotted, task, cache=tmp_path)
    again = run(slotted, task, cache=tmp_path)
    assert sum(slotted.num_amortized) == 6
    assert first.settings[0].setting.value_bits == 32
    assert again.settings == first.settings


def test_answers_of_each_setting_are_kept_apart_and_not_asked_again(
    slotted: Any, task: CompactionTask, tmp_path: Path
) -> None:
    log = AnswerLog(tmp_path, run={})
    first = run(slotted, task, log)
    assert len(log.read("bits:4")) == len(log.read("average:32@8")) == 6
    slotted.batches.clear()
    assert run(slotted, task, log).settings == first.settings
    assert slotted.batches == []


@pytest.mark.parametrize("names", [[], ["bits:4", "bits:4"]])
def test_no_setting_or_one_named_twice_is_refused(task: CompactionTask, names: list[str]) -> None:
    with pytest.raises(InvalidInput, match="settings"):
        replace(task, settings=[parse_compaction(name) for name in names])
