"""What an answer says and how sure it is, and when it counts as withheld.

The one place that knows where the engine and a bundle keep these.
"""

from __future__ import annotations

from collections.abc import Sequence

from mac_core.config import ConfidenceWeights, ModelConfig
from mac_core.engine.confidence import Judged
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.readings import surest_answers
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.results import Prediction
from mac_core.memory.bank import Selected
from mac_core.types import Question

# Oracles read what these modes read.
_READ_AS = {"oracle": "memory", "oracle-text": "text"}


def answers_of(
    model: AnsweringModel,
    selecting: Selecting,
    questions: Sequence[Question],
    selected: Sequence[Sequence[Selected]],
) -> list[Judged]:
    """By question, the answer that the engine would give, before any withholding."""
    readings = selecting.readings(questions, selected)
    requests = selecting.requests(questions, readings)
    generated = model.answer(requests)
    return surest_answers(model.config.confidence, readings, requests, generated)


def bundle_min_confidence(config: ModelConfig, mode: str) -> float | None:
    """The threshold that the bundle itself brings for a mode; None: it brings none."""
    weights: ConfidenceWeights | None = getattr(config.confidence, _READ_AS.get(mode, mode))
    return None if weights is None else weights.threshold


def thresholds(
    config: ModelConfig, modes: Sequence[str], *, min_confidence: float | None
) -> dict[str, float | None]:
    """By mode, `min_confidence` where it is given, else the bundle's own."""
    if min_confidence is not None:
        return dict.fromkeys(modes, min_confidence)
    return {mode: bundle_min_confidence(config, mode) for mode in modes}


def abstains(prediction: Prediction, min_confidence: float | None) -> bool:
    """Whether nothing is said, or what is said is withheld at a threshold; None: there is none."""
    is_below = min_confidence is not None and prediction.confidence < min_confidence
    return is_below or not prediction.answer
