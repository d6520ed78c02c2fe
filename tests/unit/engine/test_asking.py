"""Answers: modes, sources, spans, versions; isolation, deadlines and cancellation in a batch."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest

from mac_core.config import ConfidenceConfig, ConfidenceWeights
from mac_core.errors import (
    BankBehind,
    DeadlineExceeded,
    EngineFailed,
    InvalidInput,
    MacError,
    QuestionTooLong,
)
from mac_core.types import Document, Question
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import CONFIG, WAIT_S, FakeModel, Gate

FRANCE = Document(id="fr", title="France", text="It rains. The capital of France is Île-de-Réal.")
NORWAY = Document(
    id="no",
    title="Norway",
    text="Snow falls here. Dark winters come here too. The capital of Norway is Oslo.",
)
ASK_FRANCE = "What is the capital of France?"
ASK_NORWAY = "What is the capital of Norway?"


def held(bench: Bench, *questions: Question) -> tuple[Gate, list[object]]:
    """Hold the engine inside an answer while `questions` queue up behind it."""
    gate = Gate()
    bench.model.on_answer = gate
    first = bench.engine.ask(Question(text="Hold on", mode="none"))
    gate.wait_until_reached()
    bench.model.on_answer = lambda _: None
    return gate, [first, *(bench.engine.ask(question) for question in questions)]


@pytest.mark.parametrize("mode", ["none", "text", "memory", "hybrid"])
def test_empty_bank_answers_as_the_bare_model(bench: Bench, mode: str) -> None:
    answer = bench.ask(ASK_FRANCE, mode=mode)
    assert (answer.text, answer.sources, answer.bank_version) == ("nobody knows", (), 0)
    assert answer.usage.prefix_tokens == 0


@pytest.mark.parametrize("mode", ["text", "memory", "hybrid"])
def test_answer_is_spelt_as_the_source_spells_it_and_cited(bench: Bench, mode: str) -> None:
    bench.learn(NORWAY, FRANCE)
    answer = bench.ask(ASK_FRANCE, mode=mode)
    assert answer.text == "Île-de-Réal"
    best = answer.sources[0]
    assert (best.id, best.title, best.chunk) == ("fr", "France", 0)
    assert best.span is not None
    assert FRANCE.text[best.span.start : best.span.end] == "Île-de-Réal"
    assert best.snippet == "The capital of France is Île-de-Réal."
    assert answer.model == "fake"


def test_scores_are_shares_and_best_first(bench: Bench) -> None:
    bench.learn(NORWAY, FRANCE)
    scores = [source.score for source in bench.ask(ASK_FRANCE, mode="memory").sources]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)


def test_chunks_of_one_document_are_one_source(bench: Bench) -> None:
    bench.learn(Document(id="long", text="The capital is far away. " * 20))
    answer = bench.ask("What is the capital?", mode="memory", top_k=3)
    assert [source.id for source in answer.sources] == ["long"]
    assert answer.sources[0].score == pytest.approx(1.0)


def test_mode_none_reads_nothing(bench: Bench) -> None:
    bench.learn(FRANCE)
    answer = bench.ask(ASK_FRANCE, mode="none")
    assert (answer.sources, answer.usage.prefix_tokens, answer.bank_version) == ((), 0, 1)


@pytest.mark.parametrize("top_k", [None, 0, 2])
def test_top_k_is_not_of_the_texts_in_the_prompt(bench: Bench, top_k: int | None) -> None:
    bench.learn(NORWAY, FRANCE)
    assert CONFIG.selection.text_top_k == 1
    assert len(bench.ask(ASK_FRANCE, mode="text", top_k=top_k).sources) == 1


def test_top_k_bounds_what_is_aggregated_and_zero_is_the_whole_bank(bench: Bench) -> None:
    bench.learn(*(Document(id=f"d{i}", text=f"Fact {i} is number {i}.") for i in range(6)))
    assert bench.ask("fact", mode="memory", top_k=1).usage.prefix_tokens == 2
    assert bench.ask("fact", mode="memory").usage.prefix_tokens == 6
    assert bench.ask("fact", mode="memory", top_k=0).usage.prefix_tokens == 12


def test_filter_and_as_of_decide_what_is_read(bench: Bench) -> None:
    bench.learn(
        Document(id="a", text="The capital is Bonn.", metadata={"k": 1}, published_at=10.0),
        Document(id="b", text="The capital is Berlin.", metadata={"k": 2}, published_at=20.0),
    )
    ask = "What is the capital?"
    assert bench.ask(ask, filter={"k": 1}).text == "Bonn"
    assert bench.ask(ask, filter={"k": 2}).text == "Berlin"
    assert bench.ask(ask, as_of=15.0).text == "Bonn"
    assert bench.ask(ask, as_of=5.0).sources == ()


def test_as_of_reads_what_is_not_dated_and_the_bank_as_it_is_now(bench: Bench) -> None:
    ask = "What is the capital of the land?"
    bench.learn(Document(id="a", text="The capital of the land is Bonn.", published_at=10.0))
    assert bench.ask(ask, as_of=10.0).text == "Bonn"
    bench.learn(Document(id="a", text="The capital of the land is Berlin.", published_at=20.0))
    assert bench.ask(ask, as_of=10.0).sources == ()  # what was replaced does not come back
    bench.learn(Document(id="b", text="The capital of the land is Rome."))
    assert [source.id for source in bench.ask(ask, as_of=10.0).sources] == ["b"]


@pytest.mark.parametrize("mode", ["none", "text", "memory", "hybrid"])
def test_below_the_confidence_asked_for_there_is_no_answer(bench: Bench, mode: str) -> None:
    bench.learn(FRANCE)
    given = bench.ask(ASK_FRANCE, mode=mode, min_confidence=0.5)  # the model's own
    withheld = bench.ask(ASK_FRANCE, mode=mode, min_confidence=0.51)
    assert given.text
    assert (withheld.text, withheld.confidence) == (None, given.confidence)
    assert withheld.sources == tuple(replace(source, span=None) for source in given.sources)
    assert withheld.usage == given.usage


def test_questions_of_one_batch_each_have_their_own_min_confidence(bench: Bench) -> None:
    asked = [Question(text=ASK_FRANCE, mode="none", min_confidence=p) for p in (0.9, 0.1, 1.0)]
    gate, (_, *futures) = held(bench, *asked)
    gate.open()
    answers = [outcome(future).text for future in futures]
    assert answers == [None, "nobody knows", None]
    assert bench.model.answered[-1] == [ASK_FRANCE] * 3


def test_an_empty_answer_is_no_answer_whatever_was_asked_for(bench: Bench) -> None:
    bench.learn(FRANCE)
    bench.model.is_mute = True
    answer = bench.ask(ASK_FRANCE)
    assert (answer.text, answer.confidence) == (None, 0.0)
    assert [source.id for source in answer.sources] == ["fr"]


def test_a_bundles_weights_are_the_confidence(make_bench: MakeBench) -> None:
    certain = ConfidenceWeights(weights={"is_literal": 4.0}, bias=-2.0, threshold=0.3)
    config = replace(CONFIG, confidence=ConfidenceConfig(memory=certain))
    bench = make_bench(model=FakeModel(config=config))
    bench.learn(FRANCE)
    literal = bench.ask(ASK_FRANCE, mode="memory")
    assert literal.confidence == pytest.approx(1 / (1 + exp(-2.0)))
    assert bench.ask("fact", mode="none").confidence == 0.5  # no weights for it


def test_a_source_of_a_later_chunk_is_cited_by_characters_of_the_document(bench: Bench) -> None:
    text = "It\u00a0rains.  \n" * 12 + "The capital of France is Île-de-Réal. " + "So be it. " * 9
    bench.learn(Document(id="long", text=text))
    answer = bench.ask(ASK_FRANCE, mode="memory", top_k=0)
    (source,) = answer.sources
    assert source.chunk > 0
    assert source.span is not None
    assert text[source.span.start : source.span.end] == answer.text


def test_batched_answers_equal_single_ones(bench: Bench) -> None:
    bench.learn(FRANCE, NORWAY)
    questions = [
        Question(text=text, mode=mode)
        for text, mode in [(ASK_FRANCE, "memory"), (ASK_NORWAY, "hybrid"), (ASK_NORWAY, "none")]
    ]
    single = [outcome(bench.engine.ask(question)) for question in questions]
    bench.model.answered.clear()
    gate, (_, *futures) = held(bench, *questions)
    gate.open()
    together = [outcome(future) for future in futures]
    assert bench.model.answered[1:] == [[ASK_FRANCE, ASK_NORWAY, ASK_NORWAY]]
    assert [(a.text, a.sources) for a in together] == [(a.text, a.sources) for a in single]


def test_a_running_batch_keeps_its_view_and_the_next_question_sees_the_write(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_answer = gate
    before = bench.engine.ask(Question(text=ASK_FRANCE))
    gate.wait_until_reached()
    added = bench.engine.add([FRANCE])
    after = bench.engine.ask(Question(text=ASK_FRANCE))
    gate.open()
    assert outcome(before).bank_version == 0
    assert outcome(added)[0].bank_version == 1
    assert outcome(after).bank_version == 1


@pytest.mark.parametrize(
    ("question", "error", "said"),
    [
        (Question(text=""), InvalidInput, "empty"),
        (Question(text="  \n"), InvalidInput, "empty"),
        (Question(text="who", min_confidence=1.5), InvalidInput, "min_confidence=1.5"),
        (Question(text="who", min_confidence=-0.1), InvalidInput, "min_confidence=-0.1"),
        (Question(text="who", min_confidence=float("nan")), InvalidInput, "min_confidence=nan"),
        (Question(text="a\x00b"), InvalidInput, "U+0000"),
        (Question(text="a\ud800b"), InvalidInput, "U+D800"),
        (Question(text="why " * 17), QuestionTooLong, "17 tokens, the limit is 16"),
        (Question(text="why " * 10_000), QuestionTooLong, "10000 tokens"),
        (Question(text="why", top_k=-1), InvalidInput, "top_k=-1"),
        (Question(text="why", max_new_tokens=0), InvalidInput, "max_new_tokens=0"),
        (Question(text="why", temperature=float("nan")), InvalidInput, "temperature=nan"),
        (Question(text="why", temperature=-1.0), InvalidInput, "temperature=-1.0"),
        (Question(text="why", timeout_ms=float("nan")), InvalidInput, "timeout_ms=nan"),
        (Question(text="why", namespace="a\nb"), InvalidInput, "namespace"),
        (Question(text="why", mode="all"), InvalidInput, "mode='all'"),  # type: ignore[arg-type]
    ],
)
def test_bad_question_fails_without_touching_the_model(
    bench: Bench, question: Question, error: type[MacError], said: str
) -> None:
    future = bench.engine.ask(question)
    assert type(future.exception(WAIT_S)) is error
    assert said in str(future.exception(WAIT_S))
    assert bench.model.answered == []


def test_failing_question_fails_alone(bench: Bench) -> None:
    def refuse_poison(questions: list[str]) -> None:
        if "poison" in questions:
            raise RuntimeError("secret internals")

    bench.learn(NORWAY)
    questions = [Question(text=text) for text in (ASK_NORWAY, "poison", ASK_NORWAY)]
    gate, (_, *futures) = held(bench, *questions)
    bench.model.on_answer = refuse_poison
    gate.open()
    assert [outcome(futures[i]).text for i in (0, 2)] == ["Oslo", "Oslo"]
    error = futures[1].exception(WAIT_S)
    assert isinstance(error, EngineFailed)
    assert "secret" not in str(error)
    assert bench.ask(ASK_NORWAY).text == "Oslo"


def test_out_of_memory_halves_the_batch_cap_which_recovers_slowly(make_bench: MakeBench) -> None:
    bench = make_bench(max_batch_questions=8)

    def allow_two(questions: list[str]) -> None:
        if len(questions) > 2:
            raise MemoryError

    many = [Question(text="fact", mode="none")] * 8
    gate, (_, *futures) = held(bench, *many)
    bench.model.on_answer = allow_two
    gate.open()
    assert {outcome(future).text for future in futures} == {"nobody knows"}
    sizes = [len(questions) for questions in bench.model.answered[1:]]
    assert sizes[:4] == [8, 4, 2, 2]
    assert sum(size for size in sizes if size <= 2) == 8
    bench.model.on_answer = lambda _: None
    bench.model.answered.clear()
    gate, (_, *futures) = held(bench, *many)
    gate.open()
    [outcome(future) for future in futures]
    sizes = [len(questions) for questions in bench.model.answered[1:]]
    assert 8 not in sizes
    assert sizes[0] + 1 == sizes[1]


def test_out_of_memory_for_one_question_is_its_own_failure(bench: Bench) -> None:
    def refuse(_: list[str]) -> None:
        raise MemoryError

    bench.model.on_answer = refuse
    with pytest.raises(EngineFailed, match="MemoryError"):
        bench.ask("fact")


def test_questions_that_read_much_are_not_all_unpacked_at_once(make_bench: MakeBench) -> None:
    bench = make_bench(max_read_chunks=6)
    bench.learn(FRANCE, NORWAY, "Grapes grow here.")
    questions = [Question(text=ASK_FRANCE, mode="memory", top_k=top_k) for top_k in (3, 3, 1, 3)]
    gate, (_, *futures) = held(bench, *questions)
    gate.open()
    assert {outcome(future).text for future in futures} == {"Île-de-Réal"}
    assert [len(asked) for asked in bench.model.answered[1:]] == [2, 2]


def test_a_question_that_reads_more_than_there_is_room_for_is_refused_alone(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(max_read_chunks=2)
    bench.learn(FRANCE, NORWAY, "Grapes grow here.")
    gate, (_, whole, few) = held(
        bench,
        Question(text=ASK_FRANCE, mode="memory", top_k=0),
        Question(text=ASK_FRANCE, mode="memory", top_k=2),
    )
    gate.open()
    with pytest.raises(InvalidInput, match="3 chunks would be read at once, the limit is 2"):
        outcome(whole)
    assert outcome(few).text == "Île-de-Réal"


def test_deadline_in_the_queue_costs_no_model_work(bench: Bench) -> None:
    gate, (_, late) = held(bench, Question(text=ASK_FRANCE, timeout_ms=100))
    bench.clock.turn(0.2)
    gate.open()
    with pytest.raises(DeadlineExceeded, match="100 ms passed in the queue"):
        outcome(late)
    assert [ASK_FRANCE] not in bench.model.answered


def test_deadline_between_decode_steps_ends_the_row_and_not_its_neighbour(bench: Bench) -> None:
    def turn_the_clock(question: str) -> None:
        if question == ASK_FRANCE:
            bench.clock.turn(1.0)

    bench.learn(FRANCE, NORWAY)
    gate, (_, late, other) = held(
        bench, Question(text=ASK_FRANCE, timeout_ms=1500), Question(text=ASK_NORWAY)
    )
    bench.model.on_step = turn_the_clock
    gate.open()
    with pytest.raises(DeadlineExceeded, match="1500 ms passed while the answer was written"):
        outcome(late)
    assert outcome(other).text == "Oslo"


def test_cancelling_frees_the_row_within_a_step(bench: Bench) -> None:
    gate, steps = Gate(), []

    def step(question: str) -> None:
        steps.append(question)
        gate()

    bench.learn(FRANCE)
    bench.model.on_step = step
    future = bench.engine.ask(Question(text=ASK_FRANCE))
    gate.wait_until_reached()
    assert future.cancel()
    gate.open()
    assert bench.ask("fact", mode="none").text == "nobody knows"
    assert steps.count(ASK_FRANCE) == 1


def test_min_version_that_is_reached_answers_at_once(bench: Bench) -> None:
    bench.learn(FRANCE)
    assert bench.ask(ASK_FRANCE, min_version=1).bank_version == 1


def test_min_version_waits_for_the_write(bench: Bench) -> None:
    waiting = bench.engine.ask(Question(text=ASK_FRANCE, min_version=2))
    bench.learn(NORWAY)
    assert not waiting.done()
    bench.learn(FRANCE)
    assert outcome(waiting).text == "Île-de-Réal"
    assert bench.observer.phases.count("queue") == 1  # its wait, once


def test_min_version_that_never_comes_is_bank_behind(bench: Bench) -> None:
    waiting = bench.engine.ask(Question(text=ASK_FRANCE, min_version=9, timeout_ms=100))
    bench.ask("fact", mode="none")  # by now the question is set aside
    bench.clock.turn(0.2)
    bench.ask("fact", mode="none")
    with pytest.raises(BankBehind, match="version 0, asked for 9"):
        outcome(waiting)


def test_timings_and_figures_are_told(bench: Bench) -> None:
    bench.learn(FRANCE)
    answer = bench.ask(ASK_FRANCE)
    assert (answer.timings_ms.aggregate, answer.timings_ms.decode) == (1.0, 1.0)
    phases = {"queue", "select", "aggregate", "prefill", "decode", "ingest", "total"}
    assert phases <= set(bench.observer.phases)
    assert bench.observer.batches == [("documents", 1), ("questions", 1)]
    assert bench.observer.documents == [("inserted", 1)]
