"""Target modulation to key/value prefix, the paper's and the wide one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from mac_core.networks.interfaces import PrefixNetwork
from mac_core.networks.prefix import PaperPrefix, WidePrefix
from mac_core.networks.values import TargetModulation
from tests.builders import cache_argument

BATCH, VIRTUAL_TOKENS, WIDTH, LAYERS = 2, 5, 32, 2
INF = torch.inf

GROUPED_QUERY = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def target(*, log_bias: Tensor | None = None, seed: int = 0) -> TargetModulation:
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randn(BATCH, VIRTUAL_TOKENS, WIDTH, generator=generator)
    bias = torch.zeros(BATCH, VIRTUAL_TOKENS) if log_bias is None else log_bias
    return TargetModulation(slots=slots, log_bias=bias, document_mass=torch.ones(BATCH, 1))


def paper(*, num_kv_heads: int = 2, head_dim: int = 8) -> PaperPrefix:
    return PaperPrefix(
        num_prefix_tokens=2,
        num_virtual_tokens=VIRTUAL_TOKENS,
        d_modulation=WIDTH,
        num_layers=LAYERS,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_hidden=16,
    )


def wide(*, num_kv_heads: int = 2, head_dim: int = 8) -> WidePrefix:
    return WidePrefix(
        d_modulation=WIDTH,
        num_layers=LAYERS,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_hidden=16,
    )


@pytest.mark.parametrize(
    ("network", "prefix_tokens"), [(paper(), 2), (wide(), VIRTUAL_TOKENS)], ids=["paper", "wide"]
)
def test_prefix_has_one_key_and_value_per_layer(network: PrefixNetwork, prefix_tokens: int) -> None:
    prefix = network(target())
    assert [key.shape for key in prefix.keys] == [(BATCH, 2, prefix_tokens, 8)] * LAYERS
    assert [value.shape for value in prefix.values] == [(BATCH, 2, prefix_tokens, 8)] * LAYERS
    assert prefix.num_tokens == prefix_tokens


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_prefix_fits_the_cache_of_grouped_query_models(model_type: str) -> None:
    # Defect 8: num_attention_heads where grouped-query models need num_key_value_heads.
    config = AutoConfig.for_model(model_type, **GROUPED_QUERY)
    model = AutoModelForCausalLM.from_config(config)
    prefix = wide(num_kv_heads=config.num_key_value_heads, head_dim=8)(target())
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(key, value, layer)
    ids = torch.ones(BATCH, 3, dtype=torch.int64)
    assert model(input_ids=ids, **cache_argument(model, cache)).logits.shape == (BATCH, 3, 50)


@pytest.mark.parametrize("network", [paper(), wide()], ids=["paper", "wide"])
def test_every_virtual_token_reaches_keys_and_values_of_every_layer(network: PrefixNetwork) -> None:
    given = target()
    slots = given.slots.clone().requires_grad_()
    prefix = network(
        TargetModulation(slots=slots, log_bias=given.log_bias, document_mass=given.document_mass)
    )
    for tensor in (*prefix.keys, *prefix.values):
        (gradient,) = torch.autograd.grad(tensor.square().sum(), slots, retain_graph=True)
        assert (gradient.abs().amax(-1) > 0).all()


def test_wide_prefix_keeps_each_token_at_its_own_position() -> None:
    network, given = wide(), target()
    slots = given.slots.clone()
    slots[:, 3] += 1.0
    before = network(given).keys[1]
    after = network(
        TargetModulation(slots=slots, log_bias=given.log_bias, document_mass=given.document_mass)
    ).keys[1]
    moved = (before - after).abs().amax(dim=(0, 1, 3)) > 0
    assert moved.tolist() == [False, False, False, True, False]


def test_wide_prefix_carries_the_log_bias() -> None:
    log_bias = torch.tensor([[0.0, -1.0, -2.0, -INF, -3.0], [0.5] * VIRTUAL_TOKENS])
    assert torch.equal(wide()(target(log_bias=log_bias)).log_bias, log_bias)


def test_paper_prefix_has_no_bias_and_leaves_absent_slots_out() -> None:
    network = paper()
    log_bias = torch.zeros(BATCH, VIRTUAL_TOKENS)
    log_bias[:, 4] = -INF
    given = target(log_bias=log_bias)
    slots = given.slots.clone()
    slots[:, 4] = 7.0
    changed = TargetModulation(slots=slots, log_bias=log_bias, document_mass=given.document_mass)
    assert network(given).log_bias.tolist() == [[0.0, 0.0]] * BATCH
    assert torch.equal(network(given).keys[0], network(changed).keys[0])


def test_paper_prefix_of_a_row_without_slots_is_masked() -> None:
    log_bias = torch.zeros(BATCH, VIRTUAL_TOKENS)
    log_bias[1] = -INF
    prefix = paper()(target(log_bias=log_bias))
    assert prefix.log_bias.tolist() == [[0.0, 0.0], [-INF, -INF]]
    assert prefix.keys[0].isfinite().all()


def test_paper_prefix_refuses_another_number_of_tokens() -> None:
    given = target()
    short = TargetModulation(
        slots=given.slots[:, :3], log_bias=given.log_bias[:, :3], document_mass=given.document_mass
    )
    with pytest.raises(ValueError, match="3 virtual tokens, the prefix takes 5"):
        paper()(short)
