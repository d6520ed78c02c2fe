"""Generation row by row: against a slow loop without a cache, and how rows end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.model import AnswerRequest, MacModel
from tests.builders import LM_KINDS, WIDTH, LMKind, tiny_bert_model, tiny_layerwise_model
from tests.unit.networks.model_samples import (
    DAM,
    ELBE,
    QUESTIONS,
    SHORT,
    TOLERANCE,
    comparable,
    prefixes_of,
    request_for,
)

STEPS = 6


# ---- the slow loop: everything is read again for every token, and nothing is cached


def slow_answer(model: MacModel, request: AnswerRequest) -> tuple[list[int], list[float]]:
    """Greedy answer of one row, written out over the Hugging Face model's own forward."""
    question = model.layout.question(model.tokenizer.encode(request.question))
    document = model.layout.document(model.tokenizer.encode(request.texts[0]))
    answer, confidences = list[int](), list[float]()
    while len(answer) < request.max_new_tokens:
        probabilities = slow_step(model, request, document, question + answer)
        token = int(probabilities.argmax())
        confidences.append(float(probabilities[token]))
        if token == model.layout.end_id:
            break
        answer.append(token)
    return answer, confidences


@torch.no_grad()
def slow_step(
    model: MacModel, request: AnswerRequest, document: list[int], tail: list[int]
) -> Tensor:
    """Next-token probabilities after prefix, document and tail: `(vocabulary,)`."""
    hidden, logits = slow_forward(model, request, document, tail)
    embed = model.base_lm.input_embeddings
    (modulation,) = request.modulations
    assert model.pointer is not None
    assert modulation.pointer_keys is not None
    embeddings = embed(torch.tensor([document]))
    text_keys = model.pointer.text_keys(hidden[None, : len(document)], embeddings)[0]
    query = model.pointer.query(torch.cat([hidden[-1], WIDTH**0.5 * embed.weight[tail[-1]]]))
    scores = torch.cat([modulation.pointer_keys, text_keys]) @ query * model.pointer.scale
    attention = torch.softmax(scores + request.log_prior[0], dim=0)
    gate = torch.sigmoid(model.pointer.gate(hidden[-1]))[0]
    probabilities = gate * torch.softmax(logits[-1], dim=0)
    for token, weight in zip([*modulation.token_ids.tolist(), *document], attention, strict=True):
        probabilities[token] += (1 - gate) * weight
    return probabilities


def slow_forward(
    model: MacModel, request: AnswerRequest, document: list[int], tail: list[int]
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of document and tail; the document does not see the prefix."""
    prefix = prefixes_of(model, [replace(request, max_new_tokens=1)])
    num_prefix, num_text, total = prefix.num_tokens, len(document), len(document) + len(tail)
    visible = torch.ones(total, num_prefix + total, dtype=torch.bool)
    visible[:num_text, :num_prefix] = False
    visible[:, num_prefix:] = torch.ones(total, total, dtype=torch.bool).tril()
    bias = torch.zeros(visible.shape)
    bias[num_text:, :num_prefix] = prefix.log_bias[0]
    bias = bias.masked_fill(~visible, torch.finfo(torch.float32).min)
    output = model.base_lm.model(
        torch.tensor([document + tail]),
        position_ids=torch.arange(total)[None],
        attention_mask=bias[None, None],
        past_key_values=model.base_lm.cache(prefix),
        use_cache=True,
        output_hidden_states=True,
    )
    return output.hidden_states[-1][0], output.logits[0]


@pytest.mark.parametrize("kind", LM_KINDS)
def test_greedy_answer_equals_the_slow_loop(kind: LMKind) -> None:
    model = tiny_layerwise_model(kind)
    asked = request_for(model, QUESTIONS[0], [ELBE], texts=(DAM,), max_new_tokens=STEPS)
    tokens, confidences = slow_answer(model, asked)
    beside = request_for(model, QUESTIONS[2], [SHORT, DAM])  # longer, so that this row is padded
    answer = model.answer([asked, beside])[0]
    assert list(answer.token_ids) == tokens
    assert answer.confidence == pytest.approx(sum(confidences) / len(confidences), **TOLERANCE)
    assert answer.probabilities == pytest.approx(confidences, **TOLERANCE)


# ---- sampling


def sampled(model: MacModel, *, seed: int | None, temperature: float = 1.5) -> AnswerRequest:
    return request_for(
        model, QUESTIONS[0], [ELBE], max_new_tokens=STEPS, temperature=temperature, seed=seed
    )


def test_seed_decides_a_sample_wherever_its_row_stands() -> None:
    model = tiny_bert_model()
    seeded, other = sampled(model, seed=5), sampled(model, seed=6)
    (alone,) = model.answer([seeded])
    last = model.answer([other, request_for(model, QUESTIONS[2]), seeded])[2]
    assert comparable(last) == comparable(alone)
    assert comparable(model.answer([other])[0]) != comparable(alone)


def test_sampling_leaves_torchs_own_generator_alone() -> None:
    model = tiny_bert_model()
    before = torch.get_rng_state()
    model.answer([sampled(model, seed=5), sampled(model, seed=None)])
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_at_a_low_temperature_is_the_greedy_answer() -> None:
    model = tiny_bert_model()
    greedy = request_for(model, QUESTIONS[0], [ELBE], max_new_tokens=STEPS)
    cold, best = model.answer([sampled(model, seed=5, temperature=1e-4), greedy])
    assert comparable(cold) == comparable(best)


# ---- how rows end


def read_batches(model: MacModel) -> list[tuple[int, int]]:
    """Grows with every pass of the base LM: (rows, new tokens)."""
    shapes: list[tuple[int, int]] = []
    model.base_lm.model.base_model.register_forward_pre_hook(
        lambda module, inputs, named: shapes.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    return shapes


def test_rows_leave_at_their_own_limit_and_cost_nothing_more() -> None:
    # Defect 6, its third part: no key/value cache while generating.
    model = tiny_bert_model()
    asked = [request_for(model, "who", [ELBE], max_new_tokens=limit) for limit in (3, 1, 4, 3)]
    shapes = read_batches(model)
    answers = model.answer(asked)
    assert [answer.num_completion_tokens for answer in answers] == [3, 1, 4, 3]
    assert shapes == [(4, 3), (3, 1), (3, 1), (1, 1)]


def test_stopping_one_row_ends_that_row_alone() -> None:
    model = tiny_bert_model()
    asked = [request_for(model, text, [ELBE], max_new_tokens=STEPS) for text in QUESTIONS]
    undisturbed = model.answer(asked)
    calls: list[int] = []

    def should_stop(row: int) -> bool:
        calls.append(row)
        return row == 1 and calls.count(1) == 2

    stopped = model.answer(asked, should_stop=should_stop)
    assert stopped[1].token_ids == undisturbed[1].token_ids[:2]
    assert [comparable(stopped[i]) for i in (0, 2)] == [comparable(undisturbed[i]) for i in (0, 2)]


def test_end_token_closes_an_answer_and_counts_for_its_confidence() -> None:
    model = tiny_bert_model(pointer=None)
    with torch.no_grad():
        model.base_lm.model.cls.predictions.bias[model.layout.end_id] = 100.0
    answer = model.answer([request_for(model, "who", [ELBE, DAM])])[0]
    assert (answer.text, answer.token_ids, answer.num_completion_tokens) == ("", (), 0)
    assert answer.confidence == pytest.approx(1.0)
    assert len(answer.probabilities) == 1
    assert sum(answer.document_mass) == pytest.approx(1.0)


def test_closing_with_a_pointer_keeps_the_aggregations_mass() -> None:
    model = tiny_bert_model()
    assert model.pointer is not None
    with torch.no_grad():
        model.base_lm.model.cls.predictions.bias[model.layout.end_id] = 100.0
        model.pointer.gate.bias.fill_(100.0)  # nothing is copied
    answer = model.answer([request_for(model, "who", [ELBE, DAM], log_prior=[-20.0, 0.0])])[0]
    assert answer.token_ids == ()
    assert answer.document_mass == pytest.approx((0.0, 1.0), abs=1e-3)
