"""The whole model: what a batch does to a row, what documents do to an answer, what is cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.config import PointerConfig
from mac_core.networks.model import AnswerRequest, Generated, MacModel, _Clock
from mac_core.types import Modulation
from tests.builders import (
    D_LATE,
    LM_KINDS,
    MAX_TOKENS,
    WIDTH,
    WORDS,
    LMKind,
    tiny_bert_model,
    tiny_latent_model,
    tiny_paper_model,
)
from tests.unit.networks.model_samples import (
    DAM,
    ELBE,
    MODELS,
    QUESTIONS,
    SHORT,
    TOLERANCE,
    comparable,
    first_confidence,
    mixed_requests,
    never_ending,
    prefixes_of,
    request_for,
    targets_of,
)

PADDING = {"rtol": 1e-5, "atol": 1e-5}  # float32, masked sums over more columns


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> MacModel:
    return MODELS[request.param]()


@pytest.fixture(params=["layerwise-bert", "paper-gpt2", "layerwise-attend", "latent"])
def any_model(request: pytest.FixtureRequest) -> MacModel:
    return MODELS[request.param]()


def assert_same(actual: Generated, expected: Generated) -> None:
    assert comparable(actual) == comparable(expected)
    assert actual.confidence == pytest.approx(expected.confidence, **TOLERANCE)
    assert actual.document_mass == pytest.approx(expected.document_mass, **TOLERANCE)


# ---- a row and its batch


@pytest.mark.parametrize("row", range(7))
def test_batched_answer_equals_single_answer(model: MacModel, row: int) -> None:
    # Defects 2 and 4: rows mixed in the bank axis; positions and masks that padding moves.
    requests = mixed_requests(model)
    assert_same(model.answer(requests)[row], model.answer([requests[row]])[0])


def test_rows_that_share_their_documents_equal_single_answers(any_model: MacModel) -> None:
    first = request_for(any_model, QUESTIONS[0], [ELBE, DAM])
    second = replace(first, question=QUESTIONS[2], log_prior=first.log_prior[::-1])
    together = any_model.answer([first, second])
    assert_same(together[0], any_model.answer([first])[0])
    assert_same(together[1], any_model.answer([second])[0])


def test_documents_of_one_row_never_reach_another(any_model: MacModel) -> None:
    # Defect 2. Same lengths, so that not even the padding differs: equal to the last bit.
    own = request_for(any_model, QUESTIONS[0], [ELBE, SHORT])
    before = any_model.answer([own, request_for(any_model, QUESTIONS[1], ["cedar", "copper"])])
    after = any_model.answer([own, request_for(any_model, QUESTIONS[1], ["maple", "willow"])])
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_row_without_documents_is_the_bare_lm_read_both_ways() -> None:
    model = tiny_latent_model()
    question = request_for(model, QUESTIONS[0], max_new_tokens=1)
    (bare,) = model.answer([question])
    beside = model.answer([question, request_for(model, QUESTIONS[1], [ELBE])])[0]
    assert_same(beside, bare)
    assert (bare.num_prefix_tokens, bare.document_mass) == (0, ())
    ids = torch.tensor([model.layout.question(model.tokenizer.encode(QUESTIONS[0]))])
    with torch.no_grad():
        output = model.base_lm.model(ids, attention_mask=torch.zeros(1, 1, *[ids.shape[1]] * 2))
    expected = output.logits[0, -1].softmax(0).max()
    assert bare.confidence == pytest.approx(float(expected), **TOLERANCE)


@pytest.mark.parametrize("kind", LM_KINDS)
def test_row_without_documents_is_the_bare_lm(kind: LMKind) -> None:
    paper, layerwise = tiny_paper_model(kind), MODELS[f"layerwise-{kind}"]()
    layerwise.base_lm.load_state_dict(paper.base_lm.state_dict())
    question = request_for(paper, QUESTIONS[0])
    (bare,) = paper.answer([question])
    beside = layerwise.answer([question, request_for(layerwise, QUESTIONS[1], [ELBE])])[0]
    assert_same(beside, bare)
    assert (bare.num_prefix_tokens, bare.document_mass) == (0, ())


def test_nothing_asked_is_nothing_answered() -> None:
    assert tiny_bert_model().answer([]) == []


# ---- amortizing


@pytest.mark.parametrize("name", ["layerwise-bert", "layerwise-gpt2", "paper-llama", "latent"])
def test_modulation_does_not_depend_on_the_chunks_beside_it(name: str) -> None:
    # Defect 3: no mask on what reads the document.
    model = MODELS[name](pointer=PointerConfig(d_pointer=16))
    alone, beside = model.amortize([SHORT])[0], model.amortize([SHORT, 8 * ELBE[:14]])[0]
    assert (alone.pointer_keys is None) is model.points_at_slots
    assert tensors_of(beside).keys() == tensors_of(alone).keys()
    torch.testing.assert_close(tensors_of(beside), tensors_of(alone), **PADDING)


def test_selection_query_does_not_depend_on_the_questions_beside_it(any_model: MacModel) -> None:
    alone = any_model.encode_questions([QUESTIONS[1]]).selection_query
    together = any_model.encode_questions([QUESTIONS[2], QUESTIONS[1]]).selection_query
    torch.testing.assert_close(together[1:], alone, **PADDING)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))


def test_modulation_describes_the_chunks_own_tokens() -> None:
    model = tiny_bert_model(pool=2)
    (modulation,) = model.amortize([DAM])
    ids, offsets = model.tokenizer.encode_with_offsets(DAM)
    assert modulation.token_ids.tolist() == ids
    assert [tuple(pair) for pair in modulation.token_offsets.tolist()] == offsets
    assert modulation.pointer_keys is not None
    assert modulation.pointer_keys.shape == (len(ids), 2 * 16)
    assert len(modulation.slots) == -(-(len(ids) + 2) // 2)  # framed, two positions to a slot
    assert float(modulation.selection_key.norm()) == pytest.approx(1.0)


def test_latent_modulation_is_a_slot_for_every_framed_token() -> None:
    model = tiny_latent_model()
    (modulation,) = model.amortize([DAM])
    ids, offsets = model.tokenizer.encode_with_offsets(DAM)
    assert modulation.slots.shape == (len(ids) + 2, WIDTH)
    assert modulation.token_ids.tolist() == ids
    assert [tuple(pair) for pair in modulation.token_offsets.tolist()] == offsets
    assert modulation.pointer_keys is None  # made of the slots, once the question is known
    (late,) = model.aggregation_keys(modulation).tensors
    assert (late.shape, late.dtype) == ((len(ids) + 2, D_LATE), torch.int8)


def test_chunk_longer_than_the_network_reads_is_refused() -> None:
    model = tiny_bert_model()
    with pytest.raises(ValueError, match=f"{MAX_TOKENS + 1} tokens .* limit is {MAX_TOKENS}"):
        model.amortize(["amber " * (MAX_TOKENS - 1)])
    assert model.amortize([]) == []


def test_chunk_of_the_longest_length_is_read() -> None:
    (modulation,) = tiny_bert_model().amortize(["amber " * (MAX_TOKENS - 2)])
    assert len(modulation.token_ids) == MAX_TOKENS - 2


# ---- documents and the answer


def bank_model(name: str, *, max_group: int) -> MacModel:
    options: dict[str, dict[str, int]] = {
        "layerwise-bert": {"num_virtual_tokens": 160},
        "latent": {"num_virtual_tokens": 300, "num_prefix_tokens": 300},
    }
    return MODELS[name](max_group=max_group, **options.get(name, {}))


@pytest.mark.parametrize(("bank_size", "max_group"), [(1, 4), (3, 4), (4, 4), (5, 4), (65, 16)])
@pytest.mark.parametrize("name", ["layerwise-bert", "paper-gpt2", "layerwise-attend", "latent"])
def test_every_document_can_change_the_prefix(name: str, bank_size: int, max_group: int) -> None:
    # Defect 1: a hierarchy over the question's tokens leaves most documents unread.
    model = bank_model(name, max_group=max_group)
    words = WORDS.split()[-13:]
    chunks = [f"{words[i % 13]} {words[i // 13]}" for i in range(bank_size)]
    bank = model.amortize([*chunks, "the year"])
    keys = [model.aggregation_keys(modulation) for modulation in bank]
    straight = list(range(bank_size))
    orders = [straight, *([*straight[:i], bank_size, *straight[i + 1 :]] for i in straight)]
    rows = [chosen(bank, keys, order) for order in orders]
    prefix = prefixes_of(model, rows)
    values = torch.stack(prefix.values, dim=1).flatten(1)  # (rows, everything)
    distance = (values[1:] - values[:1]).abs().amax(1)  # (documents,)
    assert int((distance > 1e-5).sum()) == bank_size


@pytest.mark.parametrize("bank_size", [1, 3, 4, 5])
def test_every_document_can_change_an_answer_from_latents(bank_size: int) -> None:
    model = bank_model("latent", max_group=4)
    words = WORDS.split()
    bank = model.amortize([*words[-bank_size:], "the year"])
    keys = [model.aggregation_keys(modulation) for modulation in bank]
    straight = list(range(bank_size))
    orders = [straight, *([*straight[:i], bank_size, *straight[i + 1 :]] for i in straight)]
    rows = [chosen(bank, keys, order) for order in orders]
    before, *after = first_confidence(model, rows)
    assert min(abs(one - before) for one in after) > 1e-6


@pytest.mark.parametrize("num_virtual_tokens", [12, 160], ids=["the best", "all"])
@pytest.mark.parametrize("bank_size", [3, 5, 18])
def test_best_of_the_groups_best_are_the_best_of_all(
    bank_size: int, num_virtual_tokens: int
) -> None:
    small, whole = (
        tiny_latent_model(num_virtual_tokens=num_virtual_tokens, max_group=max_group)
        for max_group in (4, 32)
    )
    bank = whole.amortize(WORDS.split()[:bank_size])
    rows = [chosen(bank, [None] * bank_size, list(range(bank_size)))]
    grouped, flat = (targets_of(model, rows) for model in (small, whole))
    assert grouped.origin is not None
    assert flat.origin is not None
    kept = flat.log_bias.shape[1]
    assert not flat.log_bias.isneginf().any()
    torch.testing.assert_close(grouped.log_bias[:, :kept], flat.log_bias, **PADDING)
    torch.testing.assert_close(grouped.slots[:, :kept], flat.slots, **PADDING)
    assert torch.equal(grouped.origin[:, :kept], flat.origin)
    assert grouped.log_bias[:, kept:].isneginf().all()  # padding of the last group


@pytest.mark.parametrize("name", ["layerwise-bert", "paper-gpt2", "wide-llama", "latent"])
def test_document_changes_the_next_tokens_distribution(name: str) -> None:
    model = MODELS[name]()
    requests = [request_for(model, QUESTIONS[0], d, max_new_tokens=1) for d in ([ELBE], [DAM], ())]
    first, second, bare = first_confidence(model, requests)
    assert abs(first - second) > 1e-4
    assert abs(first - bare) > 1e-4


def test_order_of_documents_is_without_effect(any_model: MacModel) -> None:
    first = request_for(any_model, QUESTIONS[0], [ELBE, SHORT, DAM])
    turned = replace(
        first,
        modulations=first.modulations[::-1],
        aggregation_keys=first.aggregation_keys[::-1],
        log_prior=first.log_prior[::-1],
    )
    (straight,), (backward,) = any_model.answer([first]), any_model.answer([turned])
    assert comparable(backward) == comparable(straight)
    assert backward.document_mass[::-1] == pytest.approx(straight.document_mass, **TOLERANCE)


# ---- what is cached


def test_answers_are_the_same_with_and_without_cached_keys(any_model: MacModel) -> None:
    cached = request_for(any_model, QUESTIONS[0], [ELBE, SHORT])
    fresh = replace(cached, aggregation_keys=(None, None))
    half = replace(cached, aggregation_keys=(cached.aggregation_keys[0], None))
    answers = [any_model.answer([request])[0] for request in (cached, fresh, half)]
    assert_same(answers[1], answers[0])
    assert_same(answers[2], answers[0])


@pytest.mark.parametrize("name", ["layerwise-bert", "paper-gpt2", "layerwise-attend"])
def test_cached_keys_spare_the_documents_projections(name: str) -> None:
    # Defect 6: the bank's keys and values projected anew for every question. `latent` has none.
    model = MODELS[name]()
    cached = request_for(model, QUESTIONS[0], [ELBE, SHORT])
    projected = counted_projections(model)
    model.answer([cached, replace(cached, question=QUESTIONS[1])])
    assert projected == []
    model.answer([replace(cached, aggregation_keys=())])
    assert projected != []


@pytest.mark.parametrize("name", ["layerwise-bert", "latent"])
def test_text_and_question_are_read_in_one_pass(name: str) -> None:
    model, shapes = MODELS[name](), list[tuple[int, ...]]()
    model.base_lm.model.base_model.register_forward_pre_hook(
        lambda module, inputs, named: shapes.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    asked = [request_for(model, text, texts=(SHORT,), max_new_tokens=1) for text in QUESTIONS]
    answers = model.answer(asked)
    assert shapes == [(3, max(answer.num_prompt_tokens for answer in answers))]


@pytest.mark.parametrize("name", ["layerwise-bert", "latent"])
def test_documents_change_what_is_made_of_the_prompts_text(name: str) -> None:
    # The text sees the prefix: its own states, and with them its pointer keys, depend on it.
    model, states = MODELS[name](), list[Tensor]()
    asked = [
        request_for(model, "amber", [d], texts=(SHORT,), max_new_tokens=1) for d in (ELBE, DAM)
    ]
    model.base_lm.model.base_model.register_forward_hook(
        lambda module, inputs, output: states.append(output.last_hidden_state)
    )
    model.answer(asked)
    is_text = slice(0, len(model.tokenizer.encode(SHORT)) + 2)
    first, second = states[0][:, is_text]
    assert (first - second).abs().amax(-1).min() > 1e-5


# ---- where the answer came from


@pytest.mark.parametrize("name", ["layerwise-bert", "paper-gpt2", "latent"])
@pytest.mark.parametrize(
    ("likely", "texts"), [(0, ()), (1, ()), (2, ()), (0, (ELBE,))], ids=["0", "1", "2", "0, shown"]
)
def test_document_mass_sums_to_one_and_follows_the_prior(
    name: str, likely: int, texts: tuple[str, ...]
) -> None:
    model, prior = MODELS[name](), [-30.0] * 3
    prior[likely] = 0.0
    asked = request_for(model, QUESTIONS[0], [ELBE, SHORT, DAM], log_prior=prior, texts=texts)
    mass = model.answer([asked])[0].document_mass
    assert sum(mass) == pytest.approx(1.0)
    assert mass[likely] > 0.99


def test_document_mass_follows_the_pointer_where_it_copies() -> None:
    # The prior, and with it the aggregation, is for the second; the pointer sees the first alone.
    model = never_ending(tiny_bert_model(pointer=PointerConfig(d_pointer=16, max_documents=1)))
    asked = request_for(model, QUESTIONS[0], [ELBE, DAM, SHORT], log_prior=[-9.0, 0.0, -9.0])
    assert model.answer([asked])[0].document_mass == pytest.approx((1.0, 0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("name", ["layerwise-bert", "latent"])
def test_mass_of_the_prompts_text_is_its_documents(name: str) -> None:
    # The pointer's memory is the documents' tokens, then the text's: a longer row beside this one
    # puts padding between them.
    model = never_ending(MODELS[name]())
    (silent, copied) = (
        request_for(model, QUESTIONS[0], [SHORT, ELBE], texts=texts) for texts in ((), (SHORT,))
    )
    longer = request_for(model, QUESTIONS[1], [DAM, ELBE, DAM])
    without, with_text, _ = (
        answer.document_mass for answer in model.answer([silent, copied, longer])
    )
    assert with_text[0] > without[0]
    assert sum(with_text) == pytest.approx(1.0)


def test_tokens_are_counted_without_padding() -> None:
    model = never_ending(tiny_bert_model(num_virtual_tokens=4))
    hybrid = request_for(model, "amber", [SHORT, DAM], texts=("amber cedar",), max_new_tokens=2)
    answer = model.answer([hybrid, request_for(model, QUESTIONS[2], texts=(ELBE,))])[0]
    assert answer.num_prompt_tokens == 3 + 4  # each framed by two marks
    assert answer.num_prefix_tokens == 4
    assert answer.num_completion_tokens == len(answer.token_ids) == 2


@pytest.mark.parametrize(("num_prefix_tokens", "found"), [(4, 4), (400, 3 + len("ab") + 2)])
def test_prefix_tokens_of_latents_are_at_most_what_there_is(
    num_prefix_tokens: int, found: int
) -> None:
    model = tiny_latent_model(num_prefix_tokens=num_prefix_tokens)
    asked = request_for(model, "amber", ["amber", "a b"])
    longer = request_for(model, QUESTIONS[2], [ELBE, DAM])
    assert model.answer([asked, longer])[0].num_prefix_tokens == found


def test_texts_that_exceed_the_prompt_are_left_out_whole() -> None:
    model = tiny_bert_model()
    model.config = replace(model.config, max_text_tokens=8)
    texts = ("amber " * 4, "cedar " * 2, "maple")
    kept, cut = (request_for(model, "amber", texts=t, max_new_tokens=1) for t in (texts[:2], texts))
    assert model.answer([kept])[0].num_prompt_tokens == 3 + 6
    assert_same(model.answer([cut])[0], model.answer([kept])[0])


@pytest.mark.parametrize("likely", range(3))
def test_text_in_the_prompt_is_of_the_document_with_the_most_mass(likely: int) -> None:
    model = tiny_latent_model()
    texts = (ELBE, SHORT, DAM)
    prior = tuple(0.0 if place == likely else -60.0 for place in range(3))
    asked = request_for(model, QUESTIONS[0], texts, log_prior=prior, texts=texts)
    shown = replace(asked, num_texts=1)
    alone = replace(asked, texts=texts[likely : likely + 1])
    found, expected = model.answer([shown, alone])
    assert found.num_prompt_tokens == expected.num_prompt_tokens
    assert found.token_ids == expected.token_ids
    assert found.document_mass[likely] > 0.9


def test_at_least_one_text_may_enter_the_prompt() -> None:
    with pytest.raises(ValueError, match="num_texts=0 is below 1"):
        AnswerRequest(question="amber", num_texts=0)


def test_first_text_is_cut_rather_than_left_out() -> None:
    model = tiny_bert_model()
    model.config = replace(model.config, max_text_tokens=8)
    long = request_for(model, "amber", texts=("cedar " * 20,), max_new_tokens=1)
    assert model.answer([long])[0].num_prompt_tokens == 3 + 8


def test_phase_ends_when_the_gpu_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))
    clock = _Clock(lambda phase, seconds: events.append(phase), torch.device("cuda"))
    clock.lap("aggregate")
    _Clock(None, torch.device("cuda")).lap("aggregate")  # nobody looks: nothing is waited for
    assert events == ["cuda", "aggregate"]


def test_phases_are_observed_in_order() -> None:
    model, phases = tiny_bert_model(), list[str]()
    model.answer(
        [request_for(model, "amber", [ELBE])],
        observe=lambda phase, seconds: phases.append(phase) if seconds >= 0 else None,
    )
    assert phases == ["aggregate", "prefill", "decode"]


def test_log_prior_has_to_be_parallel_to_the_modulations() -> None:
    (modulation,) = tiny_bert_model().amortize([ELBE])
    with pytest.raises(ValueError, match="2 modulations, 1 log_prior"):
        AnswerRequest(question="who", modulations=(modulation, modulation), log_prior=(0.0,))


def test_aggregation_keys_have_to_be_parallel_or_absent() -> None:
    (modulation,) = tiny_bert_model().amortize([ELBE])
    with pytest.raises(ValueError, match="1 modulations, 2 aggregation_keys"):
        AnswerRequest(
            question="who",
            modulations=(modulation,),
            log_prior=(0.0,),
            aggregation_keys=(None, None),
        )


def chosen(bank: list[Modulation], keys: list[object], order: list[int]) -> AnswerRequest:
    return AnswerRequest(
        question=QUESTIONS[0],
        modulations=tuple(bank[i] for i in order),
        aggregation_keys=tuple(keys[i] for i in order),
        log_prior=(0.0,) * len(order),
        max_new_tokens=1,
    )


def tensors_of(modulation: Modulation) -> dict[str, Tensor]:
    named = {
        "slots": modulation.slots,
        "selection_key": modulation.selection_key,
        "pointer_keys": modulation.pointer_keys,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def counted_projections(model: MacModel) -> list[object]:
    """Grows with every call of a layer that makes keys or values of documents."""
    called: list[object] = []
    record: Callable[..., None] = lambda module, inputs: called.append(module)  # noqa: E731
    for name, module in model.aggregation.named_modules():
        if name.rpartition(".")[2] in ("key", "value"):
            module.register_forward_pre_hook(record)
    return called
