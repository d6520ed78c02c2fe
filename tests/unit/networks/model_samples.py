"""Tiny models by architecture, and questions put to them, for the tests of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from mac_core.networks.model import AnswerRequest, Generated, MacModel
from mac_core.networks.values import Prefix, TargetModulation
from tests.builders import LM_KINDS, tiny_latent_model, tiny_layerwise_model, tiny_paper_model

# float32: the same sums over rows of other lengths, in other matrix shapes, step after step
TOLERANCE = {"rel": 1e-4, "abs": 1e-4}

ELBE = "The Elbe rises in the mountains and flows to the north sea."
DAM = "The dam was built in 1921 by the minister of the city."
SHORT = "Amber."
MORE_THAN_A_GROUP = (DAM, "Cedar.", SHORT, "Copper river.", ELBE, "The willow bridge.")
QUESTIONS = ("Where does the Elbe rise?", "Who built it?", "When was the dam of the city built?")

MODELS: dict[str, Callable[..., MacModel]] = {
    **{f"layerwise-{kind}": partial(tiny_layerwise_model, kind) for kind in LM_KINDS},
    **{f"paper-{kind}": partial(tiny_paper_model, kind) for kind in LM_KINDS},
    "wide-llama": partial(tiny_paper_model, "llama", prefix="wide"),
    "latent": tiny_latent_model,
    "layerwise-attend": partial(tiny_layerwise_model, "qwen2", aggregation="attend"),
}


def request_for(
    model: MacModel,
    question: str,
    documents: Sequence[str] = (),
    *,
    is_cached: bool = True,
    log_prior: Sequence[float] | None = None,
    **options: Any,
) -> AnswerRequest:
    """A request for documents amortized one by one, so that no row's padding is another's."""
    modulations = tuple(model.amortize([document])[0] for document in documents)
    prior = torch.linspace(1.0, 0.0, len(documents)).log_softmax(0).tolist()
    return AnswerRequest(
        question=question,
        modulations=modulations,
        aggregation_keys=tuple(
            model.aggregation_keys(modulation) if is_cached else None for modulation in modulations
        ),
        log_prior=tuple(prior if log_prior is None else log_prior),
        **{"max_new_tokens": 5, **options},
    )


def mixed_requests(model: MacModel) -> list[AnswerRequest]:
    """One row of each mode, questions and documents of unlike lengths, in one batch."""
    return [
        request_for(model, QUESTIONS[0]),
        request_for(model, QUESTIONS[1], [ELBE, SHORT, DAM]),
        request_for(model, QUESTIONS[2], texts=(ELBE,), max_new_tokens=3),
        request_for(model, QUESTIONS[0], [SHORT, DAM], texts=(SHORT,)),
        request_for(model, QUESTIONS[1], [DAM], texts=(DAM, ELBE), max_new_tokens=1),
        request_for(model, QUESTIONS[0], [ELBE, DAM], temperature=1.0, seed=7),
        request_for(model, QUESTIONS[2], MORE_THAN_A_GROUP),
    ]


def prefixes_of(model: MacModel, requests: Sequence[AnswerRequest]) -> Prefix:
    """The prefix, before bare rows are hidden, that answering `requests` as one batch makes."""
    return _through_prefix(model, requests)[1]


def targets_of(model: MacModel, requests: Sequence[AnswerRequest]) -> TargetModulation:
    """The target modulation that answering `requests` as one batch makes its prefix of."""
    return _through_prefix(model, requests)[0]


def never_ending(model: MacModel) -> MacModel:
    """The model with its end token out of reach; the pointer attends but nothing is copied."""
    with torch.no_grad():
        model.base_lm.model.cls.predictions.bias[model.layout.end_id] = -100.0
        if model.pointer is not None:
            model.pointer.gate.bias.fill_(100.0)
    return model


def first_confidence(model: MacModel, requests: Sequence[AnswerRequest]) -> list[float]:
    """Probability of the first token that each request would be answered with."""
    return [answer.confidence for answer in model.answer(requests)]


def _through_prefix(
    model: MacModel, requests: Sequence[AnswerRequest]
) -> tuple[TargetModulation, Prefix]:
    made: list[tuple[TargetModulation, Prefix]] = []
    handle = model.prefix.register_forward_hook(
        lambda module, inputs, output: made.append((inputs[0], output))
    )
    try:
        model.answer(requests)
    finally:
        handle.remove()
    (through,) = made
    return through


def comparable(answer: Generated) -> tuple[object, ...]:
    """What of an answer has to be equal to the last bit."""
    return (
        answer.text,
        answer.token_ids,
        answer.num_prompt_tokens,
        answer.num_prefix_tokens,
        answer.num_completion_tokens,
    )
