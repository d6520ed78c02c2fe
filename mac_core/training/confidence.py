"""Fit a confidence, so that it is the probability that an answer is right; on held-out articles.

Half of the held-out documents are taken out of the bank. Questions about those that stay can be
answered; questions about the others cannot, however alike the documents that stay are, and nothing
answered to them counts as right. Weights are fitted on half of the articles, measured on the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.config import ANSWER_FEATURES, ConfidenceConfig, ConfidenceWeights
from mac_core.engine.confidence import Judged, judge, probability, what_was_read
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.metrics import f1
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.networks.model import MacModel
from mac_core.training.held_out import HeldOut
from mac_core.types import DEFAULT_NAMESPACE, Mode, Question

RIGHT_F1 = 0.5  # from it on an answer counts as right
L2 = 1e-3  # on standardised weights and the bias
NUM_BINS = 10
BATCH_SIZE = 32
MODES: tuple[Mode, ...] = ("none", "text", "memory", "hybrid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answer to a held-out question."""

    judged: Judged
    read: Mode  # what it was made from, whatever the mode asked for
    f1: float  # in [0, 1]
    is_answerable: bool  # the right document was in the bank

    @property
    def is_right(self) -> bool:
        return self.is_answerable and self.f1 >= RIGHT_F1

    @property
    def credit(self) -> float:
        """F1 when it is given: what SQuAD 2.0 counts."""
        is_given = self.judged.text is not None
        return self.f1 if self.is_answerable else float(not is_given)

    @property
    def credit_withheld(self) -> float:
        """F1 when it is withheld."""
        return float(not self.is_answerable)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceQuality:
    """How good the confidence of one mode is, on articles that it was not fitted on."""

    num_answers: int
    num_right: int
    calibration_error: float  # in [0, 1]
    auroc_right: float  # right answers against all others
    auroc_answerable: float  # questions whose document is in the bank against the others
    threshold: float
    f1_always: float  # percent, with credit for giving no answer where there is none
    f1_at_threshold: float
    share_answered: float  # at the threshold, in [0, 1]


def calibrate_confidence(
    model: MacModel, bank: MemoryBank, held_out: HeldOut, *, num_questions: int, seed: int
) -> tuple[ConfidenceConfig, dict[str, ConfidenceQuality]]:
    """Fit the weights of every mode; `bank` holds all documents, and half of them afterwards.

    Args:
        num_questions: about how many are asked in each mode, both halves together.
    """
    removed = _every_other([str(document.id) for document in held_out.documents], seed=seed)
    view = bank.apply(DEFAULT_NAMESPACE, 2, sorted(removed), ())
    questions = held_out.sample(num_questions, seed=seed + 2)
    to_fit = held_out.documents_of_every_other_article()
    found: dict[str, ConfidenceWeights] = {}
    quality: dict[str, ConfidenceQuality] = {}
    for mode in MODES:
        # What the bare LM knows does not depend on the bank.
        outcomes = ask(model, bank, view, mode, questions, set() if mode == "none" else removed)
        told = list(zip(questions, outcomes, strict=True))
        fit = [o for q, o in told if o.read == mode and q.document_id in to_fit]
        rest = [o for q, o in told if o.read == mode and q.document_id not in to_fit]
        weights = fit_confidence(fit)
        if weights is not None:
            found[mode] = weights
            quality[mode] = measure(weights, rest)
    return ConfidenceConfig(**found), quality


def ask(
    model: MacModel,
    bank: MemoryBank,
    view: BankView,
    mode: Mode,
    questions: Sequence[SquadQuestion],
    removed: set[str],
) -> list[Outcome]:
    """Answer as the engine does. `removed`: documents that are not in the bank."""
    selecting = Selecting(model, bank)
    outcomes: list[Outcome] = []
    for first in range(0, len(questions), BATCH_SIZE):
        batch = questions[first : first + BATCH_SIZE]
        # One reading each: what a confidence is of, however many are compared by it.
        asked = [Question(text=question.text, mode=mode, num_readings=1) for question in batch]
        selected = selecting.select(asked, [view] * len(asked), now=0.0)
        readings = selecting.readings(asked, selected)
        requests = selecting.requests(asked, readings)
        for question, request, reading, made in zip(
            batch, requests, readings, model.answer(requests), strict=True
        ):
            judged = judge(ConfidenceConfig(), request, reading.selected, made)
            outcomes.append(
                Outcome(
                    judged=judged,
                    read=what_was_read(request),
                    f1=f1(judged.text or "", question.references),
                    is_answerable=question.document_id not in removed,
                )
            )
    return outcomes


def fit_confidence(outcomes: Sequence[Outcome]) -> ConfidenceWeights | None:
    """Weights and the best threshold; None where nothing was answered.

    What was left empty takes no part in the weights: its confidence is 0 by definition.
    """
    given = [outcome for outcome in outcomes if outcome.judged.text is not None]
    if not given:
        return None
    values = torch.tensor(
        [[outcome.judged.features[name] for name in ANSWER_FEATURES] for outcome in given],
        dtype=torch.float64,
    )
    right = torch.tensor([outcome.is_right for outcome in given], dtype=torch.float64)
    slopes, bias = fit_logistic(values, right)
    weights = ConfidenceWeights(
        weights={
            name: round(slope, 5)
            for name, slope in zip(ANSWER_FEATURES, slopes, strict=True)
            if slope
        },
        bias=round(bias, 5),
        threshold=0.0,
    )
    confidences = confidences_of(weights, outcomes)
    return replace(weights, threshold=best_threshold(confidences, outcomes))


def fit_logistic(values: Tensor, right: Tensor) -> tuple[list[float], float]:
    """Slopes and bias of the likeliest logistic regression, for the features as they are.

    A weak pull to zero keeps both finite where the features tell all answers apart, or all are
    wrong. A feature that never changes weighs nothing.

    Args:
        values: `(answers, features)`, float64.
        right: `(answers,)`, 1 or 0.
    """
    mean, spread = values.mean(0), values.std(0, correction=0)
    varies = spread > 1e-9
    scale = torch.where(varies, spread, 1.0)
    standard = (values - mean) / scale * varies  # (answers, features)
    fitted = torch.zeros(values.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = standard @ fitted[:-1] + fitted[-1]
        loss = F.binary_cross_entropy_with_logits(logits, right) + L2 * fitted.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    slopes = torch.where(varies, fitted[:-1].detach() / scale, 0.0)
    return slopes.tolist(), float(fitted[-1].detach() - slopes @ mean)


def confidences_of(weights: ConfidenceWeights, outcomes: Sequence[Outcome]) -> list[float]:
    """What the engine would report of each answer."""
    return [
        0.0 if outcome.judged.text is None else probability(weights, outcome.judged.features)
        for outcome in outcomes
    ]


def best_threshold(confidences: Sequence[float], outcomes: Sequence[Outcome]) -> float:
    """The threshold with the best mean F1, the lowest of equals; SQuAD 2.0's "best threshold".

    It stands half-way between the last answer that is withheld and the first that is given.
    """
    ranked = sorted(zip(confidences, outcomes, strict=True), key=lambda pair: pair[0])
    total = sum(outcome.credit for outcome in outcomes)
    best, threshold = total, 0.0
    for place, (confidence, outcome) in enumerate(ranked):
        total += outcome.credit_withheld - outcome.credit
        following = ranked[place + 1][0] if place + 1 < len(ranked) else 1.0
        if following > confidence and total > best + 1e-9:
            best, threshold = total, (confidence + following) / 2
    return round(threshold, 4)


def measure(weights: ConfidenceWeights, outcomes: Sequence[Outcome]) -> ConfidenceQuality:
    """Judge the weights by outcomes that they were not fitted on."""
    confidences = confidences_of(weights, outcomes)
    right = [outcome.is_right for outcome in outcomes]
    num_answers = max(1, len(outcomes))
    is_given = [confidence >= weights.threshold for confidence in confidences]
    credits = [
        outcome.credit if given else outcome.credit_withheld
        for given, outcome in zip(is_given, outcomes, strict=True)
    ]
    num_given = sum(
        given and outcome.judged.text is not None
        for given, outcome in zip(is_given, outcomes, strict=True)
    )
    return ConfidenceQuality(
        num_answers=len(outcomes),
        num_right=sum(right),
        calibration_error=round(calibration_error(confidences, right), 4),
        auroc_right=round(auroc(confidences, right), 4),
        auroc_answerable=round(auroc(confidences, [o.is_answerable for o in outcomes]), 4),
        threshold=weights.threshold,
        f1_always=round(100 * sum(outcome.credit for outcome in outcomes) / num_answers, 2),
        f1_at_threshold=round(100 * sum(credits) / num_answers, 2),
        share_answered=round(num_given / num_answers, 4),
    )


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins of equal size.

    Equal confidences have no order, and a bin may end among them: each counts their mean accuracy.
    """
    tied = defaultdict[float, list[bool]](list)
    for confidence, is_right in zip(confidences, right, strict=True):
        tied[confidence].append(is_right)
    accuracy = {confidence: sum(ties) / len(ties) for confidence, ties in tied.items()}
    ranked = [(confidence, accuracy[confidence]) for confidence in sorted(confidences)]
    gap = 0.0
    for number in range(NUM_BINS):
        part = ranked[number * len(ranked) // NUM_BINS : (number + 1) * len(ranked) // NUM_BINS]
        gap += abs(sum(confidence - expected for confidence, expected in part))
    return gap / max(1, len(ranked))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Chance that a positive scores above a negative, ties half; 0.5 where one of them lacks."""
    values = torch.tensor(scores, dtype=torch.float64)
    mask = torch.tensor(positive, dtype=torch.bool)
    highs, lows = values[mask], values[~mask].sort().values
    if not len(highs) or not len(lows):
        return 0.5
    below = torch.searchsorted(lows, highs) + torch.searchsorted(lows, highs, right=True)
    return float(below.double().mean() / (2 * len(lows)))


def _every_other(ids: Sequence[str], *, seed: int) -> set[str]:
    """Half of the ids, drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(ids), generator=generator).tolist()
    return {ids[place] for place in order[: len(ids) // 2]}
