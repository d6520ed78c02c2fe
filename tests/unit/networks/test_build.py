"""From weights to a bundle and back: the same answers, nothing taken leniently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mac_core.config import ModelConfig
from mac_core.errors import CheckpointError
from mac_core.networks.build import build_model, load_bundle, model_states, tied_keys
from mac_core.networks.model import MacModel
from tests.builders import (
    LM_KINDS,
    WIDTH,
    LMKind,
    base_lm_config,
    build_tiny_bundle,
    save_tiny_bundle,
    tiny_base_lm,
    tiny_bert_model,
    tiny_latent_model,
    tiny_layerwise_model,
    tiny_paper_model,
    tiny_tokenizer_json,
)
from tests.unit.networks.model_samples import DAM, MODELS, comparable, mixed_requests

INT8 = {"rtol": 0.05, "atol": 0.05}  # half a step of 1/127 of a row's largest weight, two layers


# ---- there and back


def assert_same_answers(loaded: MacModel, model: MacModel) -> None:
    """To the last token, and in every figure to rounding: where tensors lie may change that."""
    for found, expected in zip(
        loaded.answer(mixed_requests(loaded)), model.answer(mixed_requests(model)), strict=True
    ):
        assert found.token_ids == expected.token_ids
        assert found.document_mass == pytest.approx(expected.document_mass, rel=1e-5)
        assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-5)


@pytest.mark.parametrize("kind", LM_KINDS)
def test_float32_bundle_answers_as_the_model_that_was_saved(kind: LMKind, tmp_path: Path) -> None:
    model = tiny_layerwise_model(kind, seed=3)
    loaded = load_bundle(save_tiny_bundle(tmp_path / "tiny", model))
    assert_same_answers(loaded, model)


def test_latent_bundle_answers_as_the_model_that_was_saved(tmp_path: Path) -> None:
    model = tiny_latent_model(seed=3)
    loaded = load_bundle(save_tiny_bundle(tmp_path / "tiny", model))
    assert_same_answers(loaded, model)


def test_t5_bundle_answers_as_the_model_that_was_saved(tmp_path: Path) -> None:
    model = tiny_paper_model("llama", seed=3)
    loaded = load_bundle(save_tiny_bundle(tmp_path / "tiny", model))
    assert_same_answers(loaded, model)


def test_int8_bundle_keeps_the_modulation_close(tmp_path: Path) -> None:
    model = tiny_bert_model()
    loaded = load_bundle(save_tiny_bundle(tmp_path / "tiny", model, dtype="int8"))
    (exact,), (rounded,) = (m.amortize(["the dam of the city"]) for m in (model, loaded))
    torch.testing.assert_close(rounded.selection_key, exact.selection_key, **INT8)
    assert not torch.equal(rounded.slots, exact.slots)
    cosine = torch.cosine_similarity(rounded.slots, exact.slots, dim=1)
    assert float(cosine.min()) > 0.99


def test_loaded_model_is_frozen_and_evaluating(tmp_path: Path) -> None:
    model = load_bundle(build_tiny_bundle(tmp_path / "tiny"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_fingerprints_name_the_weights(tmp_path: Path) -> None:
    one, other = (load_bundle(build_tiny_bundle(tmp_path / str(s), seed=s)) for s in (1, 2))
    again = load_bundle(build_tiny_bundle(tmp_path / "again", seed=1))
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint.amortization_hash != other.fingerprint.amortization_hash
    assert one.fingerprint.base_lm_hash != other.fingerprint.base_lm_hash


# ---- tied weights


def test_tied_head_is_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = load_bundle(build_tiny_bundle(tmp_path / "tiny"))
    head = model.base_lm.model.cls.predictions
    assert head.decoder.weight is model.base_lm.input_embeddings.weight
    stored = safetensors.torch.load_file(tmp_path / "tiny" / "base_lm.safetensors")
    assert "cls.predictions.decoder.weight" in tied_keys(model)
    assert not set(tied_keys(model)) & set(stored)


def test_untied_head_keeps_its_own_weights() -> None:
    assert tied_keys(tiny_layerwise_model("llama")) == {}


# ---- defect 10: lax loading


@pytest.mark.parametrize(
    "file",
    [
        "base_lm.safetensors",
        "amortization.safetensors",
        "tokenizer.json",
        "base_lm/config.json",
        "encoder/config.json",
    ],
)
def test_altered_file_is_refused_by_name(tmp_path: Path, file: str) -> None:
    path = build_tiny_bundle(tmp_path / "tiny") / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}: sha256"):
        load_bundle(tmp_path / "tiny")


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "aggregation.key.weight is missing": lambda s: {
        k: v for k, v in s.items() if k != "aggregation.key.weight"
    },
    "pointer.extra is unexpected": lambda s: s | {"pointer.extra": torch.zeros(2)},
    r"pointer.gate.weight .*\(1, 5\)": lambda s: s | {"pointer.gate.weight": torch.zeros(1, 5)},
}


@pytest.mark.parametrize("complaint", CHANGES)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, complaint: str) -> None:
    model = tiny_bert_model()
    _, state = model_states(model)
    path = save_tiny_bundle(
        tmp_path / "tiny", model, amortization_state=CHANGES[complaint](dict(state))
    )
    with pytest.raises(CheckpointError, match=complaint):
        load_bundle(path)


def test_bundle_without_an_encoder_configuration_is_refused(tmp_path: Path) -> None:
    path = save_tiny_bundle(tmp_path / "tiny", tiny_bert_model(), encoder_config=None)
    with pytest.raises(CheckpointError, match="no encoder configuration"):
        load_bundle(path)


# ---- parts that do not fit each other


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "depth": ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the other parts take 2"),
    "width": ({"hidden_size": 64}, "hidden_size is 64, the other parts take 32"),
}


@pytest.mark.parametrize("what", WRONG)
def test_encoder_of_another_shape_is_refused(what: str) -> None:
    change, complaint = WRONG[what]
    with pytest.raises(CheckpointError, match=complaint):
        build_model(
            tiny_bert_model().config,
            base_lm=tiny_base_lm("bert"),
            encoder_config=base_lm_config("bert", is_decoder=False) | change,
            tokenizer_json=tiny_tokenizer_json(),
        )


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "depth": ({"num_hidden_layers": 1}, "depth is 1, the encoder has 1 layers"),
    "width": ({"hidden_size": 64}, "hidden_size is 64, the other parts take 32"),
    "positions": ({"max_position_embeddings": 200}, "positions up to 256, the encoder has 200"),
    "kind": ({"model_type": "roberta"}, "a roberta encoder cannot be split, only bert can"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_encoder_that_cannot_be_split_so_is_refused(what: str) -> None:
    change, complaint = UNFIT[what]
    with pytest.raises(CheckpointError, match=complaint):
        build_model(
            tiny_latent_model().config,
            base_lm=tiny_base_lm("bert"),
            encoder_config=base_lm_config("bert", is_decoder=False) | change,
            tokenizer_json=tiny_tokenizer_json(),
        )


MISFITS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "prefix.kind='wide'": lambda config: {"prefix": replace(config.prefix, kind="wide")},
    "aggregation.kind='select'": lambda config: {
        "aggregation": replace(config.aggregation, kind="select", d_late=0)
    },
}


@pytest.mark.parametrize("complaint", MISFITS)
def test_latents_go_with_their_own_prefix_and_aggregation(complaint: str) -> None:
    config = tiny_latent_model().config
    with pytest.raises(ValueError, match=f"{complaint} does not go with amortization.kind='latent"):
        replace(config, **MISFITS[complaint](config))


@pytest.mark.parametrize("name", ["layerwise-bert", "latent", "paper-gpt2"])
def test_aggregation_of_another_question_width_is_refused(name: str) -> None:
    config = MODELS[name]().config
    config = replace(config, aggregation=replace(config.aggregation, d_question=WIDTH + 1))
    encoder = {
        "layerwise-bert": base_lm_config("bert"),
        "latent": base_lm_config("bert"),
        "paper-gpt2": {"model_type": "t5"},
    }[name]
    with pytest.raises(CheckpointError, match="d_question is 33, the other parts take 32"):
        build_model(
            config,
            base_lm=tiny_base_lm("bert"),
            encoder_config=encoder,
            tokenizer_json=tiny_tokenizer_json(),
        )


def test_width_that_a_configuration_leaves_to_its_default_is_known() -> None:
    # A stored configuration holds only what differs from the library's defaults: T5's 512.
    config = tiny_paper_model("gpt2").config
    config = replace(config, pointer=tiny_bert_model().config.pointer)
    encoder = {"model_type": "t5", "num_layers": 1, "d_ff": 8, "d_kv": 4, "num_heads": 2}
    model = build_model(
        config,
        base_lm=tiny_base_lm("gpt2"),
        encoder_config=encoder | {"vocab_size": 200},
        tokenizer_json=tiny_tokenizer_json(),
    )
    assert model.pointer is not None
    assert model.pointer.document_key[0].in_features == 512 + 2 * WIDTH
    assert comparable(model.eval().answer(mixed_requests(model))[0])


def test_precision_is_that_of_matrix_products_and_not_of_what_is_stored(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "tiny", tiny_latent_model())
    exact, low = load_bundle(bundle), load_bundle(bundle, precision="bfloat16")
    pairs = list(zip(exact.amortize([DAM]), low.amortize([DAM]), strict=True))
    for one, other in pairs:
        assert other.slots.dtype == torch.float32
        assert not torch.equal(one.slots, other.slots)
        torch.testing.assert_close(one.slots, other.slots, rtol=2e-2, atol=2e-2)
    assert low.base_lm.input_embeddings.weight.dtype == torch.float32


@pytest.mark.parametrize("architecture", MODELS)
def test_weights_cast_beforehand_give_what_autocast_gives(
    architecture: str, tmp_path: Path
) -> None:
    bundle = save_tiny_bundle(tmp_path / "tiny", MODELS[architecture]())
    cast_each_time, cast_once = load_bundle(bundle), load_bundle(bundle, precision="bfloat16")
    cast_each_time.precision = "bfloat16"
    linear = [part for part in cast_once.modules() if isinstance(part, torch.nn.Linear)]
    assert {part.weight.dtype for part in linear} == {torch.bfloat16}
    one, other = (m.answer(mixed_requests(m)) for m in (cast_each_time, cast_once))
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]
    assert [answer.probabilities for answer in one] == [answer.probabilities for answer in other]


def test_ranking_again_needs_a_late_interaction() -> None:
    config = tiny_latent_model().config
    with pytest.raises(ValueError, match=r"late_scale=0\.5 needs aggregation\.d_late above 0"):
        replace(config, aggregation=replace(config.aggregation, d_late=0))


@pytest.mark.parametrize(("kind", "d_late"), [("attend", 8), ("select", 8), ("refine", -1)])
def test_late_interaction_belongs_to_refining(kind: Any, d_late: int) -> None:
    config = tiny_latent_model().config.aggregation
    with pytest.raises(ValueError, match=f"d_late={d_late} does not go with kind='{kind}'"):
        replace(config, kind=kind, d_late=d_late)
