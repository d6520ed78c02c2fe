"""Fitting a confidence: planted weights, planted answers, and the figures that judge it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import mac_core.training.confidence as confidence
from mac_core.config import ANSWER_FEATURES, ConfidenceWeights
from mac_core.engine.confidence import Judged, probability
from mac_core.evaluation.learned import learn_documents
from mac_core.memory.bank import MemoryBank
from mac_core.training.confidence import (
    Outcome,
    ask,
    auroc,
    best_threshold,
    calibrate_confidence,
    calibration_error,
    fit_confidence,
    fit_logistic,
    measure,
)
from mac_core.training.held_out import HeldOut
from tests.builders import tiny_bert_model
from tests.unit.networks.model_samples import never_ending
from tests.unit.training.samples import FACTS, paragraphs


def outcome(
    *, f1: float, is_answerable: bool = True, text: str | None = "Bern", **features: float
) -> Outcome:
    made = dict.fromkeys(ANSWER_FEATURES, 0.0) | features
    judged = Judged(text=text, sources=(), features=made, confidence=0.5)
    return Outcome(judged=judged, read="memory", f1=f1, is_answerable=is_answerable)


# ---- logistic regression

SLOPES, BIAS = (1.5, -0.02, 0.0), 0.7


def drawn(answers: int = 8000) -> tuple[Tensor, Tensor]:
    """Features of unlike sizes, and answers right with the probability of known weights."""
    generator = torch.Generator().manual_seed(0)
    spread, middle = torch.tensor([1.0, 80.0, 1.0]), torch.tensor([0.0, 30.0, -5.0])
    values = torch.randn(answers, 3, generator=generator) * spread + middle
    chances = torch.sigmoid(values @ torch.tensor(SLOPES) + BIAS)
    return values.double(), torch.bernoulli(chances, generator=generator).double()


def test_planted_weights_are_found() -> None:
    slopes, bias = fit_logistic(*drawn())
    assert slopes[0] == pytest.approx(SLOPES[0], rel=0.1)
    assert slopes[1] == pytest.approx(SLOPES[1], rel=0.1)
    assert slopes[2] == pytest.approx(0.0, abs=0.1)
    assert bias == pytest.approx(BIAS, abs=0.6)  # the third feature's error times its middle


def test_weights_do_not_depend_on_a_features_unit() -> None:
    values, right = drawn(500)
    metres, bias = fit_logistic(values, right)
    millimetres, same = fit_logistic(1000 * values, right)
    assert [1000 * slope for slope in millimetres] == pytest.approx(metres, rel=1e-3)
    assert same == pytest.approx(bias, rel=1e-3)


def test_a_feature_that_never_changes_weighs_nothing() -> None:
    values, right = drawn(500)
    values[:, 1] = 0.1
    slopes, bias = fit_logistic(values, right)
    assert slopes[1] == 0.0
    assert all(map(math.isfinite, [*slopes, bias]))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_all_alike_give_a_probability_near_the_end(right: float) -> None:
    values, _ = drawn(500)
    slopes, bias = fit_logistic(values, torch.full((500,), right, dtype=torch.float64))
    made = torch.sigmoid(values @ torch.tensor(slopes, dtype=torch.float64) + bias)
    assert float((made - right).abs().max()) < 0.05


def test_features_that_tell_all_answers_apart_give_finite_weights() -> None:
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    slopes, _ = fit_logistic(values, (values[:, 0] > 0).double())
    assert 1.0 < slopes[0] < 1e3


# ---- weights and threshold of outcomes


def planted(answers: int = 400) -> list[Outcome]:
    """Answers right where the cosine is high; the document of the others is not in the bank."""
    return [
        outcome(f1=float(place % 10 != 0), is_answerable=place >= answers // 2, cosine=place / 100)
        for place in range(answers)
    ]


def test_the_feature_that_tells_gets_the_weight_and_a_useful_threshold() -> None:
    weights = fit_confidence(planted())
    assert weights is not None
    assert weights.weights.keys() == {"cosine"}
    assert weights.weights["cosine"] > 1.0
    found = measure(weights, planted())
    assert found.share_answered == pytest.approx(0.5, abs=0.03)
    assert found.f1_at_threshold > found.f1_always + 30.0
    assert found.auroc_answerable == 1.0
    assert (found.num_answers, found.num_right) == (400, 180)


def test_what_was_left_empty_decides_no_weight() -> None:
    silent = [outcome(f1=0.0, text=None, cosine=4.0) for _ in range(400)]
    weights, undisturbed = fit_confidence([*planted(), *silent]), fit_confidence(planted())
    assert weights is not None
    assert undisturbed is not None
    assert (weights.weights, weights.bias) == (undisturbed.weights, undisturbed.bias)
    assert fit_confidence(silent) is None


@pytest.mark.parametrize(
    ("f1", "is_answerable", "is_right"),
    [(1.0, True, True), (0.5, True, True), (0.49, True, False), (1.0, False, False)],
)
def test_right_is_half_of_the_words_with_the_document_in_the_bank(
    f1: float, is_answerable: bool, is_right: bool
) -> None:
    assert outcome(f1=f1, is_answerable=is_answerable).is_right is is_right


def test_threshold_stands_between_what_is_withheld_and_what_is_given() -> None:
    outcomes = [
        outcome(f1=0.0, is_answerable=False),
        outcome(f1=0.2),
        outcome(f1=0.0, is_answerable=False),
        outcome(f1=0.9),
    ]
    assert best_threshold([0.1, 0.3, 0.4, 0.8], outcomes) == pytest.approx(0.6)


def test_threshold_is_zero_where_withholding_never_helps() -> None:
    assert best_threshold([0.2, 0.9], [outcome(f1=0.5), outcome(f1=0.1)]) == 0.0


def test_threshold_never_parts_equal_confidences() -> None:
    outcomes = [outcome(f1=0.0, is_answerable=False), outcome(f1=1.0)]
    assert best_threshold([0.5, 0.5], outcomes) == 0.0


def test_an_empty_answer_earns_what_abstaining_does() -> None:
    assert outcome(f1=0.0, text=None, is_answerable=False).credit == 1.0
    assert outcome(f1=0.0, text=None).credit == 0.0
    assert outcome(f1=0.7, is_answerable=False).credit == 0.0
    assert outcome(f1=0.7).credit == 0.7


# ---- figures


def test_auroc_counts_pairs_and_halves_ties() -> None:
    # Pairs (positive, negative): 0.9 > 0.5, 0.9 > 0.1, 0.5 = 0.5, 0.5 > 0.1.
    assert auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auroc([0.1, 0.9], [True, False]) == 0.0
    assert auroc([0.1, 0.9], [True, True]) == 0.5


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    exact = [0.0] * 50 + [1.0] * 50
    assert calibration_error(exact, [value > 0.5 for value in exact]) == 0.0
    assert calibration_error(exact, [value < 0.5 for value in exact]) == 1.0
    assert calibration_error([0.8] * 100, [False] * 100) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "right",
    [[True, True, True, False] * 10, [True] * 30 + [False] * 10, [False] * 10 + [True] * 30],
)
def test_a_constant_that_is_as_often_right_as_it_says_is_calibrated(right: list[bool]) -> None:
    assert calibration_error([0.75] * 40, right) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error([0.5] * 40, right) == pytest.approx(0.25)


def test_ties_count_their_mean_accuracy_wherever_a_bin_ends() -> None:
    # 98 ties, half of them right: 8 stand in the first bin, beside the two others.
    confidences = [0.5] * 49 + [0.0, 0.1] + [0.5] * 49
    right = [True] * 49 + [False, False] + [False] * 49
    assert calibration_error(confidences, right) == pytest.approx(0.1 / 100)


def test_a_confidence_that_drew_the_outcomes_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(5000, generator=generator)
    right = torch.bernoulli(chances, generator=generator).bool().tolist()
    assert calibration_error(chances.tolist(), right) < 0.03
    assert calibration_error((chances / 2).tolist(), right) > 0.2


# ---- the whole, on a tiny model


def test_answers_about_documents_that_are_gone_are_never_right() -> None:
    model, held_out = tiny_bert_model(), HeldOut.of(paragraphs())
    bank = MemoryBank(model.config.selection)
    view = learn_documents(model, bank, held_out.documents, batch_size=4)
    gone = {str(held_out.documents[0].id)}
    made = ask(model, bank, view, "memory", held_out.questions, gone)
    assert [o.is_answerable for o in made] == [
        q.document_id not in gone for q in held_out.questions
    ]
    assert all(o.read == "memory" for o in made)


def test_every_mode_is_calibrated_on_a_bank_without_half_of_its_documents() -> None:
    model, held_out = never_ending(tiny_bert_model()), HeldOut.of(paragraphs())
    bank = MemoryBank(model.config.selection)
    learn_documents(model, bank, held_out.documents, batch_size=4)
    config, quality = calibrate_confidence(model, bank, held_out, num_questions=9, seed=0)
    assert bank.view("default").num_documents == len(FACTS) // 2
    assert config.memory is not None
    assert config.none is not None
    assert quality["memory"].num_answers == quality["none"].num_answers == len(FACTS) // 2
    features = dict.fromkeys(ANSWER_FEATURES, 0.0)
    assert 0.0 < probability(config.memory, features) < 1.0


def test_the_bare_models_answers_are_judged_as_if_no_document_were_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone: dict[str, int] = {}

    def answer(
        model: object,
        bank: object,
        view: object,
        mode: str,
        questions: Sequence[object],
        removed: set[str],
    ) -> list[Outcome]:
        gone[mode] = len(removed)
        return [outcome(f1=1.0) for _ in questions]

    monkeypatch.setattr(confidence, "ask", answer)
    model, held_out = tiny_bert_model(), HeldOut.of(paragraphs())
    bank = MemoryBank(model.config.selection)
    learn_documents(model, bank, held_out.documents, batch_size=4)
    calibrate_confidence(model, bank, held_out, num_questions=9, seed=0)
    half = len(FACTS) // 2
    assert gone == {"none": 0, "text": half, "memory": half, "hybrid": half}


def test_halves_share_no_article() -> None:
    held_out = HeldOut.of([*paragraphs(), *paragraphs()])
    half = held_out.documents_of_every_other_article()
    titles = [
        {d.title for d in held_out.documents if (d.id in half) is kept} for kept in (False, True)
    ]
    assert not titles[0] & titles[1]
    assert len(half) == len(held_out.documents) // 2


def test_weights_are_written_without_those_that_weigh_nothing() -> None:
    weights = fit_confidence(planted())
    assert isinstance(weights, ConfidenceWeights)
    assert "overlap" not in weights.weights
