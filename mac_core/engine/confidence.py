"""How likely an answer is right, and whether to give it at all.

A logistic regression, fitted on held-out articles (`mac_core.training.confidence`), over what is
known of an answer once it is written. A bundle without fitted weights reports the mean probability
of the answer's tokens, which orders answers but is no probability of being right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, log1p

from mac_core.config import AnswerFeature, ConfidenceConfig, ConfidenceWeights
from mac_core.engine.sources import sources_of
from mac_core.engine.spans import words_of
from mac_core.memory.bank import Selected
from mac_core.memory.index import query_terms
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.types import Mode, Source

MIN_PROBABILITY = 1e-6  # of a token; below it one token would outweigh everything else
MAX_LOG_ODDS = 10.0  # of a document that does not answer
MAX_LOGIT = 30.0  # beyond it the sigmoid is 0 or 1 to the last bit anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer as its best source spells it, its sources, and how likely it is right."""

    text: str | None  # None: withheld, or nothing was written
    sources: tuple[Source, ...]
    features: dict[AnswerFeature, float]
    confidence: float  # in [0, 1]

    def withheld_below(self, min_confidence: float) -> Judged:
        """This, or without its text and spans when the confidence does not suffice."""
        if self.text is None or self.confidence >= min_confidence:
            return self
        return replace(self, text=None, sources=_without_spans(self.sources))


def judge(
    config: ConfidenceConfig,
    request: AnswerRequest,
    selected: Sequence[Selected],
    generated: Generated,
) -> Judged:
    """Spell, cite and judge what the model made of a request; `selected` is what it came from."""
    text, sources = sources_of(request, selected, generated)
    features = features_of(request, selected, generated, text=text, sources=sources)
    if not text:
        # No answer is the model's own abstention, however sure it is of saying nothing.
        return Judged(text=None, sources=sources, features=features, confidence=0.0)
    weights: ConfidenceWeights | None = getattr(config, what_was_read(request))
    confidence = generated.confidence if weights is None else probability(weights, features)
    return Judged(text=text, sources=sources, features=features, confidence=confidence)


def what_was_read(request: AnswerRequest) -> Mode:
    """The mode that a request amounts to: `none` when there was nothing to read."""
    if request.modulations:
        return "hybrid" if request.texts else "memory"
    return "text" if request.texts else "none"


def features_of(
    request: AnswerRequest,
    selected: Sequence[Selected],
    generated: Generated,
    *,
    text: str,
    sources: Sequence[Source],
) -> dict[AnswerFeature, float]:
    """Measure one answer.

    None weighs the bank's documents against each other, as BM25, the selection's log-prior and
    the attention mass do: a bank of one document would be sure of it whatever is asked.
    """
    logs = [log(max(p, MIN_PROBABILITY)) for p in _probabilities(generated)]
    place = _best(request, selected, generated)
    best = None if place is None else selected[place]
    literal = [source for source in sources if source.span is not None]
    return {
        "mean_log_probability": sum(logs) / len(logs),
        "min_log_probability": min(logs),
        "log_num_tokens": log1p(len(generated.token_ids)),
        "cosine": best.cosine if best else 0.0,
        "late": best.late if best else 0.0,
        "overlap": _overlap(request.question, best.entry.text) if best else 0.0,
        # Of the sentence in which the answer stands: the right one speaks of what was asked.
        "sentence_overlap": _overlap(request.question, literal[0].snippet) if literal else 0.0,
        "is_literal": float(bool(literal)),
        # Log-odds that the document does not answer, as it says of itself.
        "null": 0.0 if place is None else _log_odds(generated.log_null[place : place + 1]),
    }


def probability(weights: ConfidenceWeights, features: dict[AnswerFeature, float]) -> float:
    """Probability, in [0, 1], that an answer with these features is right."""
    logit = weights.bias
    for name, value in features.items():
        logit += weights.weights.get(name, 0.0) * value
    return 1.0 / (1.0 + exp(-max(-MAX_LOGIT, min(MAX_LOGIT, logit))))


def _best(request: AnswerRequest, selected: Sequence[Selected], generated: Generated) -> int | None:
    """Place of the chunk that the answer rests on most; None: nothing was read."""
    if not selected or what_was_read(request) == "none":
        return None
    masses = generated.document_mass
    return max(range(len(masses)), key=masses.__getitem__) if masses else 0


def _log_odds(logs: Sequence[float]) -> float:
    """Of the one log-probability in `logs`, in [-MAX_LOG_ODDS, MAX_LOG_ODDS]; 0 without one."""
    if not logs:
        return 0.0
    probability = exp(min(0.0, logs[0]))
    odds = log(max(probability, MIN_PROBABILITY)) - log(max(1.0 - probability, MIN_PROBABILITY))
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, odds))


def _probabilities(generated: Generated) -> tuple[float, ...]:
    return generated.probabilities or (generated.confidence,)


def _overlap(question: str, text: str) -> float:
    """Share of the question's telling words that stand in `text`, in [0, 1]; 0 without words."""
    telling = {word for term in query_terms(question) for word in words_of(term)}
    return len(telling & set(words_of(text))) / len(telling) if telling else 0.0


def _without_spans(sources: Sequence[Source]) -> tuple[Source, ...]:
    return tuple(replace(source, span=None) for source in sources)
