"""From configurations and weights to a model, and back to what a bundle stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from mac_core.config import ModelConfig, Precision
from mac_core.errors import CheckpointError
from mac_core.networks.aggregation import AggregationNetwork, AttendAggregation
from mac_core.networks.amortization import T5Reader
from mac_core.networks.base_lm import BaseLM
from mac_core.networks.checkpoint import BundleContents, load_strictly, read_bundle
from mac_core.networks.interfaces import AmortizationNetwork, PrefixNetwork
from mac_core.networks.latent import LatentAmortization, LatentPrefix
from mac_core.networks.layerwise import LayerwiseAmortization, LayerwisePrefix
from mac_core.networks.lowering import lower_products
from mac_core.networks.model import MacModel
from mac_core.networks.pointer import PointerHead
from mac_core.networks.prefix import PaperPrefix, WidePrefix
from mac_core.networks.refine import RefineAggregation
from mac_core.networks.select import SelectAggregation
from mac_core.tokenization import Tokenizer
from mac_core.types import Fingerprint

UNTRAINED = Fingerprint(amortization_hash="untrained", base_lm_hash="untrained")


def build_model(
    config: ModelConfig,
    *,
    base_lm: BaseLM,
    encoder_config: Mapping[str, Any],
    tokenizer_json: str,
    fingerprint: Fingerprint = UNTRAINED,
) -> MacModel:
    """Put the networks that `config` names around a base LM; their weights are random.

    Args:
        encoder_config: Hugging Face configuration of the amortization network's encoder.

    Raises:
        CheckpointError: the parts' widths do not fit each other.
    """
    encoder = _hf_config(encoder_config)
    _check_widths(config, base_lm=base_lm, encoder=encoder)
    amortization = _amortization(config, encoder_config)
    pointer = None
    if config.pointer is not None:
        pointer = PointerHead(
            d_model=base_lm.d_model,
            d_encoder=encoder.hidden_size,
            d_pointer=config.pointer.d_pointer,
        )
    return MacModel(
        config=config,
        tokenizer=Tokenizer(tokenizer_json),
        fingerprint=fingerprint,
        base_lm=base_lm,
        amortization=amortization,
        aggregation=_aggregation(config, encoder_config),
        prefix=_prefix(config, base_lm),
        pointer=pointer,
    )


def load_bundle(path: Path, *, device: str = "cpu", precision: Precision = "float32") -> MacModel:
    """Read a bundle strictly and make its model, frozen and in evaluation mode.

    Args:
        precision: of matrix products; with bfloat16 their weights are held so, too.

    Raises:
        CheckpointError: a file is missing or altered, or weights and configuration do not agree.
    """
    contents = read_bundle(path)
    if contents.encoder_config is None:
        raise CheckpointError(f"{path} has no encoder configuration")
    model = build_model(
        contents.config,
        base_lm=BaseLM.from_config(contents.base_lm_config),
        encoder_config=contents.encoder_config,
        tokenizer_json=contents.tokenizer_json,
        fingerprint=contents.fingerprint,
    )
    load_states(model, contents)
    model.precision = precision
    if precision == "bfloat16":
        lower_products(model)
    return model.to(device).eval().requires_grad_(False)


def load_states(model: MacModel, contents: BundleContents) -> None:
    """Fill a model with a bundle's weights; every key must find its place."""
    load_strictly(model.base_lm.model, contents.base_lm_state, tied=tied_keys(model))
    networks = torch.nn.ModuleDict(_networks(model))
    load_strictly(networks, contents.amortization_state)


def model_states(model: MacModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the base LM and of everything else; what is tied is stored once."""
    tied = tied_keys(model)
    base_lm = {k: v for k, v in model.base_lm.model.state_dict().items() if k not in tied}
    return base_lm, torch.nn.ModuleDict(_networks(model)).state_dict()


def tied_keys(model: MacModel) -> dict[str, str]:
    """Keys of the base LM whose tensor another key holds: key -> that other key."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for key, tensor in model.base_lm.model.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(tensor), key)
        if owner != key:
            tied[key] = owner
    return tied


def _networks(model: MacModel) -> dict[str, torch.nn.Module]:
    """The trained networks by name, the base LM apart."""
    parts = {
        "amortization": model.amortization,
        "aggregation": model.aggregation,
        "prefix": model.prefix,
        "pointer": model.pointer,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _amortization(config: ModelConfig, encoder_config: Mapping[str, Any]) -> AmortizationNetwork:
    if config.amortization.kind == "layerwise":
        return LayerwiseAmortization.from_config(
            dict(encoder_config), pool=config.amortization.pool
        )
    if config.amortization.kind == "latent":
        return LatentAmortization(
            encoder_config,
            depth=config.amortization.depth,
            selection_layers=config.amortization.selection_layers,
            document_position=config.amortization.document_position,
        )
    return T5Reader(config.amortization, encoder_config, d_key=config.selection.d_key)


def _aggregation(config: ModelConfig, encoder_config: Mapping[str, Any]) -> AggregationNetwork:
    if config.aggregation.kind == "refine":
        return RefineAggregation(
            config.aggregation,
            encoder_config,
            num_virtual_tokens=config.amortization.num_virtual_tokens,
        )
    if config.aggregation.kind == "select":
        return SelectAggregation(
            config.aggregation, num_virtual_tokens=config.amortization.num_virtual_tokens
        )
    return AttendAggregation(config.aggregation)


def _prefix(config: ModelConfig, base_lm: BaseLM) -> PrefixNetwork:
    if config.prefix.kind == "layerwise":
        return LayerwisePrefix(base_lm)
    if config.prefix.kind == "latent":
        return LatentPrefix(base_lm, num_prefix_tokens=config.prefix.num_prefix_tokens)
    shape = {
        "d_modulation": config.amortization.d_modulation,
        "num_layers": base_lm.num_layers,
        "num_kv_heads": base_lm.num_kv_heads,
        "head_dim": base_lm.head_dim,
    }
    if config.prefix.kind == "paper":
        return PaperPrefix(
            num_prefix_tokens=config.prefix.num_prefix_tokens,
            num_virtual_tokens=config.amortization.num_virtual_tokens,
            **shape,
        )
    return WidePrefix(**shape)


def _hf_config(values: Mapping[str, Any]) -> Any:
    """A Hugging Face configuration with its defaults, which a stored one leaves out."""
    own = dict(values)
    return AutoConfig.for_model(own.pop("model_type"), **own)


def _check_widths(config: ModelConfig, *, base_lm: BaseLM, encoder: Any) -> None:
    wanted = {
        "aggregation.d_question": (config.aggregation.d_question, config.amortization.d_modulation)
    }
    if config.amortization.kind == "layerwise":
        wanted = {
            "encoder hidden_size": (encoder.hidden_size, base_lm.d_model),
            "encoder num_hidden_layers": (encoder.num_hidden_layers, base_lm.num_layers),
            "amortization.d_modulation": (
                config.amortization.d_modulation,
                base_lm.num_layers * base_lm.d_model,
            ),
            "aggregation.d_question": (config.aggregation.d_question, encoder.hidden_size),
            "selection.d_key": (config.selection.d_key, encoder.hidden_size),
        }
    if config.amortization.kind == "latent":
        if encoder.model_type != "bert":
            raise CheckpointError(f"a {encoder.model_type} encoder cannot be split, only bert can")
        if config.amortization.depth >= encoder.num_hidden_layers:
            raise CheckpointError(
                f"amortization.depth is {config.amortization.depth}, "
                f"the encoder has {encoder.num_hidden_layers} layers"
            )
        positions = config.amortization.document_position + config.amortization.max_tokens
        if positions > encoder.max_position_embeddings:
            raise CheckpointError(
                f"documents take positions up to {positions}, "
                f"the encoder has {encoder.max_position_embeddings}"
            )
        wanted = {
            "encoder hidden_size": (encoder.hidden_size, base_lm.d_model),
            "amortization.d_modulation": (config.amortization.d_modulation, base_lm.d_model),
            "aggregation.d_question": (config.aggregation.d_question, encoder.hidden_size),
            "selection.d_key": (config.selection.d_key, encoder.hidden_size),
        }
    for name, (found, right) in wanted.items():
        if found != right:
            raise CheckpointError(f"{name} is {found}, the other parts take {right}")
