"""Generation row by row: against a slow loop without a cache, and how rows end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.model import AnswerRequest, MacModel
from mac_core.networks.values import Prefix
from tests.builders import (
    LM_KINDS,
    WIDTH,
    LMKind,
    cache_argument,
    tiny_bert_model,
    tiny_latent_model,
    tiny_layerwise_model,
)
from tests.unit.networks.model_samples import (
    DAM,
    ELBE,
    QUESTIONS,
    SHORT,
    TOLERANCE,
    comparable,
    never_ending,
    prefixes_of,
    request_for,
    targets_of,
)

STEPS = 6


# ---- the slow loop: everything is read again for every token, and nothing is cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Copyable:
    """Some tokens of one row that may be copied, or ended after."""

    keys: Tensor  # (tokens, 2 * d_pointer)
    token_ids: list[int]
    log_prior: Tensor  # (tokens,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Where the tokens of document, question and answer stand, and what each of them sees."""

    positions: list[int]
    visible: Tensor  # (tokens, tokens), bool


Look = Callable[[MacModel, int, int, int], Sight]


def causal(model: MacModel, document: int, question: int, answer: int) -> Sight:
    total = document + question + answer
    return Sight(
        positions=list(range(total)), visible=torch.ones(total, total, dtype=torch.bool).tril()
    )


def both_ways(model: MacModel, document: int, question: int, answer: int) -> Sight:
    """The question from 0, the answer behind it, the document out of their way."""
    text_position, prompt = model.config.max_question_tokens, document + question
    visible = torch.ones(prompt + answer, prompt + answer, dtype=torch.bool).tril()
    visible[:prompt, :prompt] = True
    return Sight(
        positions=[
            *range(text_position, text_position + document),
            *range(question),
            *range(question, question + answer),
        ],
        visible=visible,
    )


def stored_tokens(model: MacModel, request: AnswerRequest) -> Copyable:
    """The documents' tokens under the keys that were made at ingest and the documents' prior."""
    pairs = list(zip(request.modulations, request.log_prior, strict=True))
    return Copyable(
        keys=torch.cat([m.pointer_keys for m, _ in pairs if m.pointer_keys is not None]),
        token_ids=[token for m, _ in pairs for token in m.token_ids.tolist()],
        log_prior=torch.cat([torch.full((len(m.token_ids),), prior) for m, prior in pairs]),
    )


@torch.no_grad()
def kept_tokens(model: MacModel, request: AnswerRequest) -> Copyable:
    """The tokens whose slots were kept, framing apart, under their documents' mass."""
    target = targets_of(model, [replace(request, max_new_tokens=1)])
    assert model.pointer is not None
    assert target.origin is not None
    kept = [
        (slot, int(document), int(position))
        for slot, (document, position, _, _) in enumerate(target.origin[0].tolist())
        if position >= 0 and target.log_bias[0, slot] > -torch.inf
    ]
    texts = [modulation.token_ids.tolist() for modulation in request.modulations]
    framed = [model.layout.document(text) for text in texts]
    tokens = [texts[document][position] for _, document, position in kept]
    before = [framed[document][position] for _, document, position in kept]  # framed is one ahead
    embed = model.base_lm.input_embeddings
    return Copyable(
        keys=model.pointer.document_keys(
            target.slots[:, [slot for slot, _, _ in kept]],
            embed(torch.tensor([before])),
            embed(torch.tensor([tokens])),
        )[0],
        token_ids=tokens,
        log_prior=target.document_mass[0, [document for _, document, _ in kept]].log(),
    )


def slow_answer(
    model: MacModel, request: AnswerRequest, stored: Copyable, look: Look
) -> tuple[list[int], list[float]]:
    """Greedy answer of one row, written out over the Hugging Face model's own forward."""
    question = model.layout.question(model.tokenizer.encode(request.question))
    document = model.layout.document(model.tokenizer.encode(request.texts[0]))
    prefix = prefixes_of(model, [replace(request, max_new_tokens=1)])
    answer, confidences = list[int](), list[float]()
    while len(answer) < request.max_new_tokens:
        sight = look(model, len(document), len(question), len(answer))
        ids = document + question + answer
        probabilities = slow_step(model, prefix, stored, ids, len(document), sight)
        token = int(probabilities.argmax())
        confidences.append(float(probabilities[token]))
        if token == model.layout.end_id:
            break
        answer.append(token)
    return answer, confidences


@torch.no_grad()
def slow_step(
    model: MacModel,
    prefix: Prefix,
    stored: Copyable,
    ids: list[int],
    num_text: int,
    sight: Sight,
) -> Tensor:
    """Next-token probabilities after prefix and ids, whose first `num_text` may be copied."""
    hidden, logits = slow_forward(model, prefix, ids, sight)
    embed, pointer = model.base_lm.input_embeddings, model.pointer
    assert pointer is not None
    own = embed(torch.tensor(ids[1 : num_text - 1]))  # the document without its two marks
    before = embed(torch.tensor(ids[: num_text - 2]))
    text_keys = pointer.text_keys(hidden[1 : num_text - 1], before, own)
    query = pointer.query(torch.cat([hidden[-1], WIDTH**0.5 * embed.weight[ids[-1]]]))
    keys, width = torch.cat([stored.keys, text_keys]), len(query) // 2
    prior = torch.cat([stored.log_prior, torch.zeros(len(text_keys))])
    copying = keys[:, :width] @ query[:width] * pointer.scale + prior
    ending = keys[:, width:] @ query[width:] * pointer.scale + prior
    copied, ended = torch.softmax(torch.cat([copying, ending]), dim=0).chunk(2)
    gate = torch.sigmoid(pointer.gate(hidden[-1]))[0]
    probabilities = gate * torch.softmax(logits[-1], dim=0)
    for token, weight in zip(stored.token_ids + ids[1 : num_text - 1], copied, strict=True):
        probabilities[token] += (1 - gate) * weight
    probabilities[model.layout.end_id] += (1 - gate) * ended.sum()
    return probabilities


def slow_forward(
    model: MacModel, prefix: Prefix, ids: list[int], sight: Sight
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of all tokens; every one of them sees the prefix."""
    lowest = torch.finfo(torch.float32).min
    own = torch.zeros(sight.visible.shape).masked_fill(~sight.visible, lowest)
    before = prefix.log_bias.clamp_min(lowest).expand(len(ids), -1)
    output = model.base_lm.model(
        torch.tensor([ids]),
        position_ids=torch.tensor([sight.positions]),
        attention_mask=torch.cat([before, own], dim=1)[None, None],
        **cache_argument(model.base_lm.model, model.base_lm.cache(prefix)),
        use_cache=True,
        output_hidden_states=True,
    )
    return output.hidden_states[-1][0], output.logits[0]


def with_marks(model: MacModel) -> MacModel:
    """The model, whose documents are framed by one mark on either side."""
    assert len(model.layout.document_head) == len(model.layout.document_tail) == 1
    return model


def assert_answers_slowly_alike(
    model: MacModel, asked: AnswerRequest, stored: Copyable, look: Look
) -> None:
    tokens, confidences = slow_answer(model, asked, stored, look)
    beside = request_for(model, QUESTIONS[2], [SHORT, DAM])  # longer, so that this row is padded
    answer = model.answer([asked, beside])[0]
    assert list(answer.token_ids) == tokens
    assert answer.confidence == pytest.approx(sum(confidences) / len(confidences), **TOLERANCE)
    assert answer.probabilities == pytest.approx(confidences, **TOLERANCE)


@pytest.mark.parametrize("kind", LM_KINDS)
def test_greedy_answer_equals_the_slow_loop(kind: LMKind) -> None:
    model = with_marks(tiny_layerwise_model(kind))
    asked = request_for(model, QUESTIONS[0], [ELBE, SHORT], texts=(DAM,), max_new_tokens=STEPS)
    assert_answers_slowly_alike(model, asked, stored_tokens(model, asked), causal)


@pytest.mark.parametrize("num_virtual_tokens", [160, 12], ids=["all slots", "the best slots"])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_answer_of_latents_equals_the_slow_loop(seed: int, num_virtual_tokens: int) -> None:
    model = with_marks(tiny_latent_model(seed=seed, num_virtual_tokens=num_virtual_tokens))
    asked = request_for(model, QUESTIONS[0], [ELBE, SHORT], texts=(DAM,), max_new_tokens=STEPS)
    assert_answers_slowly_alike(model, asked, kept_tokens(model, asked), both_ways)


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
    model = never_ending(tiny_bert_model())
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
