"""What is measured of an answer, written out by hand, and the probability made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log

import pytest

from mac_core.config import (
    ANSWER_FEATURES,
    AnswerFeature,
    ConfidenceConfig,
    ConfidenceWeights,
)
from mac_core.engine.confidence import Judged, judge, probability, what_was_read
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.learned import learn_documents
from mac_core.memory.bank import MemoryBank
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.types import Document, Mode, Question
from tests.unit.engine.fakes import CONFIG, FakeModel

RIVER = Document(id="river", text="The River Elbe flows to Hamburg.")
RAIN = Document(id="rain", text="It rains in Bergen.")
ASK = "Where does the Elbe flow, in Hamburg?"  # telling: elbe, flow, hamburg


def judged(
    answer: str,
    *,
    mode: Mode = "memory",
    documents: Sequence[Document] = (RIVER, RAIN),
    probabilities: tuple[float, ...] = (0.5, 0.25),
    config: ConfidenceConfig = ConfidenceConfig(),  # noqa: B008  frozen
) -> Judged:
    """`answer` judged as if the model had given it to `ASK`, all of the bank before it."""
    model = FakeModel()
    bank = MemoryBank(CONFIG.selection)
    view = learn_documents(model, bank, documents, batch_size=4)
    selecting = Selecting(model, bank)
    question = Question(text=ASK, mode=mode)
    selected = selecting.select([question], [view], now=0.0)
    readings = selecting.readings([question], selected)
    (request,) = selecting.requests([question], readings)
    generated = Generated(
        text=answer,
        token_ids=tuple(range(len(answer.split()))),
        confidence=0.375,
        document_mass=(0.75, 0.25)[: len(request.modulations)],
        num_prompt_tokens=0,
        num_prefix_tokens=0,
        num_completion_tokens=0,
        probabilities=probabilities,
        log_null=(log(0.2), log(0.9))[: len(request.modulations)],
    )
    return judge(config, request, selected[0], generated)


def test_features_of_an_answer_are_what_their_names_say() -> None:
    made = judged("hamburg harbour")
    assert made.features == {
        "mean_log_probability": pytest.approx((log(0.5) + log(0.25)) / 2),
        "min_log_probability": pytest.approx(log(0.25)),
        "log_num_tokens": pytest.approx(log(3)),
        "cosine": made.features["cosine"],
        "late": 0.0,  # this model does not rank again
        "overlap": pytest.approx(2 / 3),  # "flow" is not "flows"
        "sentence_overlap": 0.0,  # it stands in none
        "is_literal": 0.0,
        "null": pytest.approx(log(0.2 / 0.8)),  # of the document that the answer rests on most
    }
    assert set(made.features) == set(ANSWER_FEATURES)


def test_cosine_is_that_of_the_best_document_and_there_is_none_in_mode_text() -> None:
    model = FakeModel()
    query = model.encode_questions([ASK]).selection_query[0]
    key = model.amortize([RIVER.text])[0].selection_key
    assert judged("hamburg").features["cosine"] == pytest.approx(float(query @ key), abs=1e-2)
    assert judged("hamburg", mode="text").features["cosine"] == 0.0


@pytest.mark.parametrize(
    ("answer", "overlap"), [("Bergen", 0.0), ("river elbe", 2 / 3), ("rains in", 0.0)]
)
def test_an_answer_that_stands_in_a_source_is_judged_by_its_sentence(
    answer: str, overlap: float
) -> None:
    both = Document(id="both", text=f"{RAIN.text} {RIVER.text}")
    features = judged(answer, documents=[both]).features
    assert features["is_literal"] == 1.0
    assert features["sentence_overlap"] == pytest.approx(overlap)
    assert features["overlap"] == pytest.approx(2 / 3)


def test_no_feature_depends_on_what_else_is_in_the_bank() -> None:
    alone, beside = judged("hamburg", documents=[RIVER]), judged("hamburg")
    assert alone.sources != beside.sources
    assert alone.features == beside.features


@pytest.mark.parametrize("mode", ["none", "memory"])
def test_features_without_documents_are_those_of_the_words_alone(mode: Mode) -> None:
    nothing = ("cosine", "late", "overlap", "sentence_overlap", "is_literal", "null")
    made = judged("hamburg", documents=[] if mode == "memory" else [RIVER], mode=mode)
    assert [made.features[name] for name in nothing] == [0.0] * 6
    assert made.features["mean_log_probability"] < 0.0


def test_an_impossible_token_does_not_make_a_feature_infinite() -> None:
    assert judged("hamburg", probabilities=(0.0,)).features["min_log_probability"] == log(1e-6)


def test_without_weights_the_confidence_is_the_mean_probability_of_the_tokens() -> None:
    assert judged("hamburg").confidence == 0.375


@pytest.mark.parametrize("mode", ["none", "text", "memory", "hybrid"])
def test_the_weights_of_what_was_read_decide(mode: Mode) -> None:
    weights = {
        name: ConfidenceWeights(weights={}, bias=bias, threshold=0.5)
        for name, bias in (("none", -2.0), ("text", -1.0), ("memory", 1.0), ("hybrid", 2.0))
    }
    made = judged("hamburg", mode=mode, config=ConfidenceConfig(**weights))
    assert made.confidence == pytest.approx(1 / (1 + exp(-weights[mode].bias)))


def test_memory_over_an_empty_bank_is_the_bare_model() -> None:
    certain = ConfidenceWeights(weights={}, bias=9.0, threshold=0.5)
    doubtful = ConfidenceWeights(weights={}, bias=-9.0, threshold=0.5)
    config = ConfidenceConfig(memory=certain, none=doubtful)
    assert judged("hamburg", documents=[], config=config).confidence < 0.01


@pytest.mark.parametrize("name", ANSWER_FEATURES)
def test_confidence_rises_with_a_feature_of_positive_weight(name: AnswerFeature) -> None:
    weights = ConfidenceWeights(weights={name: 2.0}, bias=-1.0, threshold=0.5)
    values = [-3.0, 0.0, 0.5, 1.0]
    made = [probability(weights, {name: value}) for value in values]
    assert made == sorted(set(made))
    assert made[2] == pytest.approx(0.5)
    others = dict.fromkeys(ANSWER_FEATURES, 7.0) | {name: 0.5}
    assert probability(weights, others) == made[2]


@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_a_probability_is_one_however_far_out_the_features_are(value: float) -> None:
    weights = ConfidenceWeights(weights={"cosine": 1e3}, bias=0.0, threshold=0.5)
    assert probability(weights, {"cosine": value}) == pytest.approx(float(value > 0))


def test_withholding_takes_text_and_spans_and_leaves_the_rest() -> None:
    made = judged("elbe flows")
    assert made.withheld_below(0.375) is made
    withheld = made.withheld_below(0.376)
    assert withheld == replace(
        made, text=None, sources=tuple(replace(source, span=None) for source in made.sources)
    )
    assert any(source.span for source in made.sources)


@pytest.mark.parametrize("answer", ["", " "])
def test_an_empty_answer_has_no_text_and_no_confidence(answer: str) -> None:
    certain = ConfidenceWeights(weights={}, bias=9.0, threshold=0.5)
    made = judged(answer, config=ConfidenceConfig(memory=certain))
    assert (made.text, made.confidence) == (None, 0.0)
    assert made.sources


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"colour": 1.0}}, "colour"),
        ({"weights": {"cosine": float("nan")}}, "cosine=nan"),
        ({"bias": float("inf")}, "bias=inf"),
        ({"threshold": 1.5}, "threshold=1.5"),
    ],
)
def test_weights_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    values: dict[str, object] = {"weights": {}, "bias": 0.0, "threshold": 0.5} | changes
    with pytest.raises(ValueError, match=said):
        ConfidenceWeights(**values)


def test_what_was_read_follows_the_request() -> None:
    assert what_was_read(AnswerRequest(question=ASK)) == "none"
    assert what_was_read(AnswerRequest(question=ASK, texts=("a",))) == "text"
