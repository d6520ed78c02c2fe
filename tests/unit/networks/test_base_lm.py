"""The wrapper over causal LMs: GPT-2, grouped-query Llama and Qwen2, and BERT as a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from mac_core.networks.base_lm import BaseLM, attention_bias
from mac_core.networks.layerwise import LayerwisePrefix
from mac_core.networks.prefix import PaperPrefix, WidePrefix
from mac_core.networks.prompt import Prompt, PromptAttention, make_prompt
from mac_core.networks.reading import read_next, read_prompt, read_with_answer, start
from mac_core.networks.values import Prefix, TargetModulation
from tests.builders import (
    HEADS,
    KV_HEADS,
    LAYERS,
    LM_KINDS,
    WIDTH,
    LMKind,
    base_lm_config,
    cache_argument,
    tiny_base_lm,
)

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # the same sums, masked in another way
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, softmax over more columns
STEPWISE = {"rtol": 1e-4, "atol": 1e-4}  # float32, matrix products of other shapes
TOKENS = 7
TEXT_POSITION = 20
EXPECTED_KV_HEADS = {"gpt2": HEADS, "bert": HEADS, "llama": KV_HEADS, "qwen2": KV_HEADS}

pytestmark = pytest.mark.usefixtures("_no_grad")


@pytest.fixture
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=LM_KINDS)
def kind(request: pytest.FixtureRequest) -> LMKind:
    return request.param


@pytest.fixture
def base_lm(kind: LMKind) -> BaseLM:
    return tiny_base_lm(kind)


def sample_ids(*, batch: int = 2, tokens: int = TOKENS, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 100, (batch, tokens), generator=generator)


def sample_slots(width: int, *, seed: int = 4) -> TargetModulation:
    generator = torch.Generator().manual_seed(seed)
    return TargetModulation(
        slots=torch.randn(2, 3, width, generator=generator),
        log_bias=torch.zeros(2, 3),
        document_mass=torch.ones(2, 1),
    )


def sample_prefix(base_lm: BaseLM) -> Prefix:
    return LayerwisePrefix(base_lm)(sample_slots(LAYERS * WIDTH))


def real(ids: Tensor) -> Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


def prompt_of(
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    text: tuple[Tensor, Tensor] | None = None,
    attention: PromptAttention = "causal",
) -> Prompt:
    question = (ids, real(ids) if mask is None else mask)
    return make_prompt(question, text, attention=attention, text_position=TEXT_POSITION)


def logits_of(base_lm: BaseLM, ids: Tensor, *, prefix: Prefix | None = None) -> Tensor:
    context = start(base_lm, batch=len(ids), prefix=prefix)
    return base_lm.logits(read_prompt(base_lm, context, prompt_of(ids)))


def test_projections_are_what_the_lm_itself_caches(base_lm: BaseLM) -> None:
    ids = sample_ids(tokens=1)  # at position 0, where a rotary model turns nothing
    cache = DynamicCache()
    output = base_lm.model(
        ids,
        **cache_argument(base_lm.model, cache),
        use_cache=True,
        output_hidden_states=True,
        return_dict=True,
    )
    entering = output.hidden_states[:LAYERS]
    projections = base_lm.key_value_projections()
    assert len(projections) == LAYERS
    for project, states, layer in zip(projections, entering, cache.layers, strict=True):
        key, value = project(states)
        torch.testing.assert_close(key, layer.keys, **TOLERANCE)
        torch.testing.assert_close(value, layer.values, **TOLERANCE)


def test_layerwise_prefix_has_the_lms_key_value_heads(kind: LMKind, base_lm: BaseLM) -> None:
    # Defect 8: `num_attention_heads` where grouped-query models need `num_key_value_heads`.
    prefix = sample_prefix(base_lm)
    shape = (2, EXPECTED_KV_HEADS[kind], 3, WIDTH // HEADS)
    assert [tuple(tensor.shape) for tensor in (*prefix.keys, *prefix.values)] == [shape] * 4


@pytest.mark.parametrize("prefix_kind", ["paper", "wide"])
def test_mlp_prefix_of_the_lms_shape_is_read(
    kind: LMKind, base_lm: BaseLM, prefix_kind: str
) -> None:
    shape = {
        "d_modulation": WIDTH,
        "num_layers": base_lm.num_layers,
        "num_kv_heads": base_lm.num_kv_heads,
        "head_dim": base_lm.head_dim,
    }
    networks = {
        "paper": lambda: PaperPrefix(num_prefix_tokens=2, num_virtual_tokens=3, **shape),
        "wide": lambda: WidePrefix(**shape),
    }
    prefix = networks[prefix_kind]()(sample_slots(WIDTH))
    assert prefix.keys[0].shape[1] == EXPECTED_KV_HEADS[kind]
    read_with = logits_of(base_lm, sample_ids(), prefix=prefix)
    assert (read_with - logits_of(base_lm, sample_ids())).abs().max() > 1e-4


def test_without_prefix_it_is_the_plain_lm(kind: LMKind, base_lm: BaseLM) -> None:
    values = base_lm_config(kind)
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values)
    )
    plain.load_state_dict(base_lm.model.state_dict())
    ids = sample_ids()
    expected = plain.eval()(ids, attention_mask=real(ids).long()).logits
    torch.testing.assert_close(logits_of(base_lm, ids), expected, **EXACT)


def test_wholly_masked_prefix_is_no_prefix(base_lm: BaseLM) -> None:
    ids, prefix = sample_ids(), sample_prefix(base_lm)
    masked = prefix.masked(torch.tensor([[True], [False]]))
    hidden = logits_of(base_lm, ids, prefix=masked)
    torch.testing.assert_close(hidden[0], logits_of(base_lm, ids)[0], **TOLERANCE)
    torch.testing.assert_close(hidden[1], logits_of(base_lm, ids, prefix=prefix)[1], **TOLERANCE)


def test_log_bias_of_a_prefix_counts_as_so_many_copies(base_lm: BaseLM) -> None:
    prefix = sample_prefix(base_lm)
    doubled = Prefix(
        keys=tuple(torch.cat([key, key[:, :, :1]], dim=2) for key in prefix.keys),
        values=tuple(torch.cat([value, value[:, :, :1]], dim=2) for value in prefix.values),
        log_bias=torch.zeros(2, 4),
    )
    weighed = Prefix(
        keys=prefix.keys,
        values=prefix.values,
        log_bias=torch.tensor([2.0, 1.0, 1.0]).log().expand(2, -1),
    )
    ids = sample_ids()
    torch.testing.assert_close(
        logits_of(base_lm, ids, prefix=weighed),
        logits_of(base_lm, ids, prefix=doubled),
        **TOLERANCE,
    )


def test_cached_steps_equal_one_full_pass(base_lm: BaseLM) -> None:
    ids, prefix = sample_ids(), sample_prefix(base_lm)
    whole = logits_of(base_lm, ids, prefix=prefix)
    context = start(base_lm, batch=2, prefix=prefix)
    steps = [read_next(base_lm, context, token) for token in ids.unbind(1)]
    torch.testing.assert_close(base_lm.logits(torch.cat(steps, dim=1)), whole, **STEPWISE)


def test_prefix_takes_no_position(base_lm: BaseLM) -> None:
    ids = sample_ids()
    context = start(base_lm, batch=2, prefix=sample_prefix(base_lm))
    seen: list[Tensor] = []
    base_lm.model.base_model.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["position_ids"]), with_kwargs=True
    )
    read_prompt(base_lm, context, prompt_of(ids[:, :5]))
    read_next(base_lm, context, ids[:, 5])
    read_next(base_lm, context, ids[:, 6])
    assert [positions[0].tolist() for positions in seen] == [[0, 1, 2, 3, 4], [5], [6]]


def test_positions_go_on_after_each_rows_own_text(base_lm: BaseLM) -> None:
    # Defect 4: positions counted over padding.
    text, ids = sample_ids(tokens=5), sample_ids(tokens=2, seed=6)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    context = start(base_lm, batch=2, prefix=None)
    read_prompt(base_lm, context, prompt_of(ids, text=(text, mask)))
    assert context.position.tolist() == [7, 4]
    last = sample_ids(tokens=1, seed=7)
    together = base_lm.logits(read_next(base_lm, context, last[:, 0]))
    joined = torch.cat([text[1:, :2], ids[1:], last[1:]], dim=1)
    torch.testing.assert_close(together[1:], logits_of(base_lm, joined)[:, -1:], **STEPWISE)
    assert context.position.tolist() == [8, 5]


def test_padding_of_new_tokens_changes_no_real_one(base_lm: BaseLM) -> None:
    ids = sample_ids()
    mask = torch.tensor([[True] * TOKENS, [True] * 3 + [False] * (TOKENS - 3)])
    context = start(base_lm, batch=2, prefix=sample_prefix(base_lm))
    padded = base_lm.logits(read_prompt(base_lm, context, prompt_of(ids, mask)))[1, :3]
    short = sample_prefix(base_lm).rows(torch.tensor([1]))
    alone = logits_of(base_lm, ids[1:, :3], prefix=short)[0]
    torch.testing.assert_close(padded, alone, **STEPWISE)


def test_rows_that_are_kept_go_on_as_before(base_lm: BaseLM) -> None:
    # Defect 4: two rows stay, so that their order matters.
    ids, prefix = sample_ids(batch=3), sample_prefix(base_lm).rows(torch.tensor([0, 1, 0]))
    whole = logits_of(base_lm, ids, prefix=prefix)
    context = start(base_lm, batch=3, prefix=prefix)
    read_prompt(base_lm, context, prompt_of(ids[:, :4]))
    context.keep(torch.tensor([1, 2]))
    rest = [read_next(base_lm, context, token) for token in ids[1:, 4:].unbind(1)]
    torch.testing.assert_close(base_lm.logits(torch.cat(rest, dim=1)), whole[1:, 4:], **STEPWISE)


# ---- prompts and answers


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_answer_read_at_once_is_the_answer_read_token_by_token(
    base_lm: BaseLM, attention: PromptAttention
) -> None:
    # What is trained is what runs; prompts and answers of unlike lengths stand in one batch.
    prefix, answer = sample_prefix(base_lm), sample_ids(tokens=3, seed=8)
    text = (sample_ids(tokens=4, seed=9), torch.tensor([[True] * 4, [False] * 4]))
    mask = torch.tensor([[True] * TOKENS, [True] * 5 + [False] * 2])
    prompt = prompt_of(sample_ids(), mask, text=text, attention=attention)
    answer_mask = torch.tensor([[True, True, True], [True, True, False]])
    context = start(base_lm, batch=2, prefix=prefix)
    whole = read_with_answer(base_lm, context, prompt, (answer, answer_mask))
    stepwise = start(base_lm, batch=2, prefix=prefix)
    read_prompt(base_lm, stepwise, prompt)
    steps = torch.cat([read_next(base_lm, stepwise, token) for token in answer.unbind(1)], dim=1)
    assert prompt.lengths.tolist() == [4 + TOKENS, 5]
    torch.testing.assert_close(whole[0, 4 + TOKENS :], steps[0], **STEPWISE)
    torch.testing.assert_close(whole[1, 5:7], steps[1, :2], **STEPWISE)
    assert context.position.tolist() == (stepwise.position - torch.tensor([0, 1])).tolist()


def test_prompt_read_both_ways_is_the_lm_without_its_triangle(base_lm: BaseLM) -> None:
    text, ids = sample_ids(tokens=4, seed=9), sample_ids(tokens=3)
    prompt = prompt_of(ids, text=(text, real(text)), attention="bidirectional")
    context = start(base_lm, batch=2, prefix=None)
    expected = base_lm.model.base_model(
        input_ids=torch.cat([text, ids], dim=1),
        position_ids=torch.tensor([[20, 21, 22, 23, 0, 1, 2]]).expand(2, -1),
        attention_mask=torch.zeros(2, 1, 7, 7),
    ).last_hidden_state
    torch.testing.assert_close(read_prompt(base_lm, context, prompt), expected, **TOLERANCE)


def test_order_within_a_prompt_read_both_ways_is_without_effect(base_lm: BaseLM) -> None:
    text, ids = sample_ids(tokens=4, seed=9), sample_ids(tokens=3)
    prompt = prompt_of(ids, text=(text, real(text)), attention="bidirectional")
    order = torch.tensor([4, 5, 6, 3, 1, 0, 2])
    turned = replace(prompt, ids=prompt.ids[:, order], positions=prompt.positions[:, order])
    straight, other = (
        read_prompt(base_lm, start(base_lm, batch=2, prefix=None), p) for p in (prompt, turned)
    )
    torch.testing.assert_close(other, straight[:, order], **STEPWISE)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_text_in_the_prompt_sees_the_prefix(base_lm: BaseLM, attention: PromptAttention) -> None:
    text, ids = sample_ids(tokens=4, seed=9), sample_ids(tokens=3)
    prompt = prompt_of(ids, text=(text, real(text)), attention=attention)
    with_prefix, without = (
        read_prompt(base_lm, start(base_lm, batch=2, prefix=prefix), prompt)
        for prefix in (sample_prefix(base_lm), None)
    )
    assert (with_prefix - without).abs().amax(-1).min() > 1e-4


def test_attention_bias_is_finite_and_leaves_no_row_without_a_column() -> None:
    bias = attention_bias(
        cached_bias=torch.full((1, 2), -torch.inf),
        token_mask=torch.tensor([[True, False, True]]),
        dtype=torch.bfloat16,
    )
    assert bias.dtype == torch.bfloat16
    assert bias.isfinite().all()
    visible = bias[0, 0] == 0
    assert visible.tolist() == [
        [False, False, True, False, False],
        [False, False, True, True, False],
        [False, False, True, False, True],
    ]


def test_open_tokens_are_seen_by_earlier_ones() -> None:
    bias = attention_bias(
        cached_bias=torch.zeros(1, 1),
        token_mask=torch.tensor([[True, True, True, False]]),
        open_mask=torch.tensor([[True, True, False, False]]),
    )
    assert (bias[0, 0] == 0).tolist() == [
        [True, True, True, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]


def test_unknown_architecture_is_refused_by_name() -> None:
    class Foreign(torch.nn.Module):
        config = tiny_base_lm("gpt2").model.config
        base_model = torch.nn.Linear(1, 1)

    with pytest.raises(NotImplementedError, match="Foreign"):
        BaseLM(Foreign()).key_value_projections()
