"""Readings: documents read apart, which of their answers is given, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch

from mac_core.config import ConfidenceConfig, ConfidenceWeights
from mac_core.engine.confidence import Judged
from mac_core.engine.newer import newer_first
from mac_core.engine.readings import MIN_SHARE, Reading, parts_to_read, readings_of, surest
from mac_core.engine.selecting import Selecting
from mac_core.errors import InvalidInput
from mac_core.memory.bank import MemoryBank, Selected
from mac_core.types import Document, Question
from tests.unit.engine.conftest import Bench, MakeBench
from tests.unit.engine.fakes import CONFIG, FakeModel
from tests.unit.engine.test_newer import NEW, OLD, chosen

RIVER = Document(id="river", text="The River Elbe flows to Hamburg.")
MAYOR = Document(id="mayor", text="Hamburg has a mayor called Elbe Strand, Elbe Strand.")
ASK = "Where does the River Elbe flow?"


def names(readings: list[Reading]) -> list[list[str]]:
    return [[one.entry.document_id for one in reading.selected] for reading in readings]


def two(first: float = 2.0, second: float = 1.5) -> list[Selected]:
    return [chosen("a", first, None), chosen("b", second, None)]


def answer(confidence: float, text: str | None = "said") -> Judged:
    return Judged(text=text, sources=(), features={}, confidence=confidence)


def test_documents_are_read_apart_so_many_together_at_a_time() -> None:
    selected = [chosen(name, 1.0, None) for name in "abcd"]
    assert names(readings_of(0, selected, together=1)) == [["a"], ["b"], ["c"], ["d"]]
    assert names(readings_of(0, selected, together=3)) == [["a", "b", "c"], ["d"]]
    assert names(readings_of(0, selected, together=4)) == [list("abcd")]
    assert names(readings_of(0, selected, together=0)) == [list("abcd")]
    assert names(readings_of(0, [], together=1)) == [[]]


@pytest.mark.parametrize(
    ("widths", "parts"),
    [
        ([], []),
        ([9], [[9]]),  # too wide for itself: one at least
        ([2, 2, 2, 2], [[2, 2, 2], [2]]),
        ([1, 1, 4, 1, 0], [[1, 1], [4, 1], [0]]),  # as wide as the widest
        ([0, 0, 0, 0], [[0, 0, 0], [0]]),  # no more than three
    ],
)
def test_readings_go_together_as_memory_has_room(widths: list[int], parts: list[list[int]]) -> None:
    one = chosen("a", 1.0, None)
    readings = [Reading(place=place, selected=[one] * width) for place, width in enumerate(widths)]
    cut = parts_to_read(readings, max_readings=3, max_chunks=8)
    assert [[len(reading.selected) for reading in part] for part in cut] == parts


def test_priors_are_among_those_read_together_and_shares_among_readings() -> None:
    selected = [chosen(name, score, None) for name, score in (("a", 3.0), ("b", 2.5), ("c", 2.9))]
    first, second = readings_of(7, selected, together=2)
    assert (first.place, second.place) == (7, 7)
    assert [one.log_prior for one in first.selected] == pytest.approx(
        torch.tensor([3.0, 2.5]).log_softmax(dim=0).tolist()
    )
    assert [one.log_prior for one in second.selected] == [0.0]
    whole = exp(3.0) + exp(2.5) + exp(2.9)
    shares = [exp(first.log_share), exp(second.log_share)]
    assert shares == pytest.approx([(exp(3.0) + exp(2.5)) / whole, exp(2.9) / whole])


def test_one_reading_is_what_was_selected_untouched() -> None:
    selected = two()
    (reading,) = readings_of(0, selected, together=2)
    assert (reading.selected, reading.log_share) == (selected, 0.0)


@pytest.mark.parametrize(
    ("share", "is_read"), [(MIN_SHARE + 0.01, True), (MIN_SHARE - 0.01, False)]
)
def test_what_selection_finds_unlikely_is_not_read(share: float, is_read: bool) -> None:
    selected = two(log(1.0 - share), log(share))
    assert len(readings_of(0, selected, together=1)) == 1 + is_read


def test_asking_for_more_readings_gives_no_fewer() -> None:
    alike = [chosen(str(number), 1.0, None) for number in range(8)]
    falling = [chosen(str(n), s, None) for n, s in enumerate((0.0, -0.9, -1.3, -1.5, -1.6))]
    for selected in (alike, falling):
        counts = [
            len(readings_of(0, selected[:number], together=1))
            for number in range(1, len(selected) + 1)
        ]
        assert counts == sorted(counts)
    assert len(readings_of(0, alike[:3], together=1)) == 3


def test_the_likeliest_answer_is_given_and_selection_decides_between_equals() -> None:
    readings = readings_of(0, two(), together=1) + readings_of(1, two(), together=1)
    assert surest(readings, [answer(0.3), answer(0.6), answer(0.5), answer(0.5)]) == [1, 2]
    # Nearly as sure, and less likely: log(0.38 / 0.62) is less than the odds gain by 0.1.
    assert surest(readings, [answer(0.5), answer(0.6), answer(0.9), answer(0.8)]) == [0, 2]


def test_an_answer_is_given_rather_than_none() -> None:
    readings = readings_of(0, two(), together=1)
    assert surest(readings, [answer(0.0, None), answer(0.01)]) == [1]
    assert surest(readings, [answer(1.0), answer(1.0)]) == [0]  # no odds of one are infinite


def overlap_decides(sign: float = 1.0) -> FakeModel:
    """A model that is sure where the document has the question's words; -1: where it lacks them."""
    weights = ConfidenceWeights(weights={"overlap": sign * 20.0}, bias=-sign * 10.0, threshold=0.0)
    selection = replace(CONFIG.selection, top_k=1, dense_scale=0.1, bm25_scale=0.1)
    confidence = ConfidenceConfig(memory=weights, hybrid=weights, text=weights)
    return FakeModel(config=replace(CONFIG, selection=selection, confidence=confidence))


@pytest.mark.parametrize("mode", ["memory", "hybrid", "text"])
@pytest.mark.parametrize(("sign", "answers"), [(1.0, "river"), (-1.0, "mayor")])
def test_the_surer_document_answers_whichever_selection_prefers(
    make_bench: MakeBench, mode: str, sign: float, answers: str
) -> None:
    bench = make_bench(model=overlap_decides(sign))
    bench.learn(MAYOR, RIVER)
    apart = bench.ask(ASK, mode=mode, num_readings=2)
    assert [source.id for source in apart.sources] == [answers]
    assert apart.sources[0].score == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["memory", "hybrid"])
def test_usage_counts_every_reading(make_bench: MakeBench, mode: str) -> None:
    bench = make_bench(model=overlap_decides())
    bench.learn(MAYOR, RIVER)
    once = bench.ask(ASK, mode=mode, num_readings=1).usage
    twice = bench.ask(ASK, mode=mode, num_readings=2).usage
    assert twice.prefix_tokens == 2 * once.prefix_tokens
    assert twice.prompt_tokens > once.prompt_tokens
    assert twice.completion_tokens > once.completion_tokens


def test_the_bundle_says_how_many_where_the_question_does_not(make_bench: MakeBench) -> None:
    model = overlap_decides()
    model.config = replace(model.config, selection=replace(model.config.selection, num_readings=2))
    bench = make_bench(model=model)
    bench.learn(MAYOR, RIVER)
    asked = {number: bench.ask(ASK, mode="memory", num_readings=number) for number in (None, 1, 2)}
    usages = {number: made.usage.prefix_tokens for number, made in asked.items()}
    assert usages[None] == usages[2] == 2 * usages[1]


def test_questions_of_a_batch_keep_their_own_readings(make_bench: MakeBench) -> None:
    bench = make_bench(model=overlap_decides())
    bench.learn(MAYOR, RIVER)
    questions = [
        Question(text=ASK, mode="memory", num_readings=2),
        Question(text="Who?", mode="none"),
        Question(text="Who is the mayor called?", mode="memory", num_readings=1),
    ]
    tickets = [bench.engine.ask(question) for question in questions]
    together = [ticket.result(timeout=20.0) for ticket in tickets]
    alone = [bench.ask(one.text, mode=one.mode, num_readings=one.num_readings) for one in questions]
    assert [(a.text, a.usage) for a in together] == [(a.text, a.usage) for a in alone]


def test_readings_that_do_not_fit_together_are_made_one_after_another(
    make_bench: MakeBench,
) -> None:
    model = overlap_decides()
    bench = make_bench(model=model)
    bench.learn(MAYOR, RIVER)

    def too_much(questions: list[str]) -> None:
        if len(questions) > 1:
            raise MemoryError

    model.on_answer = too_much
    answer = bench.ask(ASK, mode="memory", num_readings=2)
    assert [source.id for source in answer.sources] == ["river"]
    assert answer.usage.prefix_tokens == 2 * bench.ask(ASK, mode="memory").usage.prefix_tokens


def test_no_more_is_read_than_was_asked_for(make_bench: MakeBench) -> None:
    """What was selected in another mode, for an oracle, may be more than one reading takes."""
    model = overlap_decides()
    selecting = Selecting(model, MemoryBank(model.config.selection))
    selected = [chosen(name, 1.0, None) for name in "abcd"]
    for number in (1, 2):
        question = Question(text=ASK, mode="text", num_readings=number)
        assert len(selecting.readings([question], [selected])) == number


@pytest.mark.parametrize("number", [0, -1])
def test_no_reading_is_not_a_number_of_readings(bench: Bench, number: int) -> None:
    with pytest.raises(InvalidInput, match="num_readings"):
        bench.ask(ASK, num_readings=number)


def test_an_older_rival_is_never_read_apart(make_bench: MakeBench) -> None:
    """Without the newer one beside it, it would answer with what is no longer true."""
    selected = [
        chosen("old", 9.0, OLD),
        chosen("new", 8.9, NEW),
        chosen("else", 1.0, None, "other"),
    ]
    kept = newer_first(selected, top_k=1, num_readings=2)
    assert [one.entry.document_id for one in kept] == ["new", "else"]
    both = newer_first(selected, top_k=2, num_readings=2)
    assert [one.entry.document_id for one in both] == ["new", "old", "else"]
