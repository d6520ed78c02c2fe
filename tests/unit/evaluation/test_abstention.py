from types import SimpleNamespace
from typing import Any

import pytest

from mac_core.config import ConfidenceConfig, ConfidenceWeights
from mac_core.engine.confidence import judge
from mac_core.evaluation.abstention import abstains, bundle_min_confidence, thresholds
from mac_core.evaluation.results import Prediction
from mac_core.networks.model import AnswerRequest


def prediction(answer: str, confidence: float) -> Prediction:
    return Prediction(
        question_id="q",
        answer=answer,
        confidence=confidence,
        seconds=0.0,
        batch_size=4,
        num_threads=1,
    )


@pytest.mark.parametrize(
    ("confidence", "min_confidence", "withheld"),
    [(0.49, 0.5, True), (0.5, 0.5, False), (0.0, None, False), (0.0, 0.0, False)],
)
def test_an_answer_is_withheld_below_the_threshold(
    confidence: float, min_confidence: float | None, withheld: bool
) -> None:
    assert abstains(prediction("Ulm", confidence), min_confidence) is withheld


def test_silence_is_an_abstention_without_any_threshold() -> None:
    assert abstains(prediction("", 1.0), None)


def calibrated() -> Any:
    weights = ConfidenceWeights(weights={}, bias=0.0, threshold=0.3)
    return SimpleNamespace(confidence=ConfidenceConfig(memory=weights))


@pytest.mark.parametrize(
    ("mode", "threshold"), [("memory", 0.3), ("oracle", 0.3), ("hybrid", None), ("text", None)]
)
def test_a_bundle_brings_a_threshold_for_each_mode(mode: str, threshold: float | None) -> None:
    assert bundle_min_confidence(calibrated(), mode) == threshold


def test_a_bundle_without_calibration_brings_none(reader: Any) -> None:
    assert bundle_min_confidence(reader.config, "memory") is None


def test_a_given_threshold_holds_for_every_mode() -> None:
    modes = ("memory", "hybrid")
    assert thresholds(calibrated(), modes, min_confidence=0.0) == {"memory": 0.0, "hybrid": 0.0}
    assert thresholds(calibrated(), modes, min_confidence=None) == {"memory": 0.3, "hybrid": None}


def test_silence_is_sure_of_nothing(reader: Any) -> None:
    request = AnswerRequest(question="Where does nobody dwell?")
    (made,) = reader.answer([request])
    judged = judge(reader.config.confidence, request, [], made)
    assert (judged.text, judged.confidence) == ("nowhere", 1.0)
    silent = type(made)(**{name: getattr(made, name) for name in made.__slots__} | {"text": " "})
    judged = judge(reader.config.confidence, request, [], silent)
    assert (judged.text, judged.confidence) == (None, 0.0)
