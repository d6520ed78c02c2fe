"""Tiny models with seeded random weights, built in code: two layers of width 32, no downloads.

Weights are drawn wider than a real initialisation's, so that answers depend on what is read.
"""

from __future__ import annotations

import inspect
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import DynamicCache

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ModelConfig,
    PointerConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.networks.base_lm import BaseLM
from mac_core.networks.build import build_model, model_states
from mac_core.networks.checkpoint import save_bundle
from mac_core.networks.latent import LatentAmortization
from mac_core.networks.model import MacModel
from mac_core.training.warm_start import plain_config

LMKind = Literal["gpt2", "llama", "qwen2", "bert"]
LM_KINDS: tuple[LMKind, ...] = ("gpt2", "llama", "qwen2", "bert")

WIDTH, LAYERS, HEADS, KV_HEADS = 32, 2, 4, 2
MAX_POSITIONS = 1024
D_LATE = 8
MAX_TOKENS = 128  # of a chunk, framing included
DOCUMENT_POSITION = 128  # of a chunk's first token, where a question's do not reach
WORDS = (
    "the a of in is was and to by for who what where when which how many did does "
    "river rises flows mountains built year name elbe dam bridge sea north city "
    "minister harbour amber cedar copper granite maple willow"
)


def tiny_tokenizer_json() -> str:
    """A lower-case WordPiece tokenizer: some words, and letters, digits and signs for the rest."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*string.ascii_lowercase, *string.digits]
    tokens = [
        *marks,
        *pieces,
        *(f"##{piece}" for piece in pieces),
        *string.punctuation,
        *WORDS.split(),
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    fast = FastTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.add_special_tokens(marks)
    return str(fast.to_str())


VOCABULARY = len(json.loads(tiny_tokenizer_json())["model"]["vocab"])
T5_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "d_model": WIDTH,
    "d_kv": 8,
    "num_heads": HEADS,
    "d_ff": 64,
    "num_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "dropout_rate": 0.0,
}


def tiny_base_lm(kind: LMKind, *, seed: int = 0) -> BaseLM:
    """A causal LM; Llama and Qwen2 share two key/value heads among four query heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BaseLM.from_config(base_lm_config(kind)).eval()


def cache_argument(model: nn.Module, cache: DynamicCache) -> dict[str, DynamicCache]:
    """A cache under the name that the architecture takes it by; transformers 5 renames it."""
    takes = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in takes else "past_key_values": cache}


def tiny_bert_model(*, seed: int = 0, **changes: Any) -> MacModel:
    """A layer-wise model around BERT as a decoder: `select` and a pointer head."""
    return tiny_layerwise_model("bert", seed=seed, **changes)


def tiny_latent_model(
    *,
    seed: int = 0,
    num_virtual_tokens: int = 160,
    num_prefix_tokens: int = 8,
    max_group: int = 4,
    pointer: PointerConfig | None = PointerConfig(d_pointer=16),  # noqa: B008  frozen
) -> MacModel:
    """The bundled model's architecture: latents, `refine`, a pointer, a prompt read both ways."""
    config = ModelConfig(
        name="tiny-latent",
        amortization=AmortizationConfig(
            kind="latent",
            num_virtual_tokens=num_virtual_tokens,
            d_modulation=WIDTH,
            max_tokens=MAX_TOKENS,
            chunk_overlap_tokens=16,
            depth=1,
            document_position=DOCUMENT_POSITION,
        ),
        aggregation=AggregationConfig(
            kind="refine",
            d_modulation=WIDTH,
            d_question=WIDTH,
            max_group=max_group,
            num_blocks=1,
            d_late=D_LATE,
        ),
        prefix=PrefixConfig(kind="latent", num_prefix_tokens=num_prefix_tokens),
        pointer=pointer,
        selection=SelectionConfig(d_key=WIDTH, late_scale=0.5),
        max_question_tokens=128,
        prompt_attention="bidirectional",
    )
    return _build(config, "bert", base_lm_config("bert", is_decoder=False), seed=seed)


def tiny_layerwise_model(
    kind: LMKind,
    *,
    seed: int = 0,
    num_virtual_tokens: int = 16,
    pool: int = 2,
    max_group: int = 4,
    aggregation: Literal["attend", "select"] = "select",
    pointer: PointerConfig | None = PointerConfig(d_pointer=16),  # noqa: B008  frozen
) -> MacModel:
    """Layer-wise modulation of any base LM, by a BERT encoder of its depth and width."""
    d_modulation = LAYERS * WIDTH
    config = ModelConfig(
        name=f"tiny-{kind}",
        amortization=AmortizationConfig(
            kind="layerwise",
            num_virtual_tokens=num_virtual_tokens,
            d_modulation=d_modulation,
            max_tokens=MAX_TOKENS,
            chunk_overlap_tokens=16,
            pool=pool,
        ),
        aggregation=_aggregation(aggregation, d_modulation, max_group=max_group),
        prefix=PrefixConfig(kind="layerwise"),
        pointer=pointer,
        selection=SelectionConfig(d_key=WIDTH),
        max_question_tokens=128,
    )
    return _build(config, kind, base_lm_config("bert", is_decoder=False), seed=seed)


def tiny_paper_model(
    kind: LMKind = "gpt2",
    *,
    prefix: Literal["paper", "wide"] = "paper",
    seed: int = 0,
    num_virtual_tokens: int = 4,
    max_group: int = 4,
    pointer: PointerConfig | None = None,
) -> MacModel:
    """The paper's architecture: T5 amortization, `attend`, and a prefix made by an MLP."""
    config = ModelConfig(
        name=f"paper-{kind}",
        amortization=AmortizationConfig(
            kind="t5",
            num_virtual_tokens=num_virtual_tokens,
            d_modulation=WIDTH,
            max_tokens=MAX_TOKENS,
            chunk_overlap_tokens=16,
        ),
        aggregation=_aggregation("attend", WIDTH, max_group=max_group),
        prefix=PrefixConfig(kind=prefix),
        pointer=pointer,
        selection=SelectionConfig(d_key=8),
        max_question_tokens=128,
    )
    model = _build(config, kind, T5_CONFIG, seed=seed)
    with torch.no_grad():  # begins at 0.02, where no document is heard
        model.prefix.project.out.weight.mul_(20.0)
    return model


def build_tiny_bundle(path: Path, *, seed: int = 0) -> Path:
    """Write the tiny BERT model as a bundle; the directory."""
    return save_tiny_bundle(path, tiny_bert_model(seed=seed))


def save_tiny_bundle(path: Path, model: MacModel, **changes: Any) -> Path:
    """Write `model` as a float32 bundle, with `changes` in place of what is its own."""
    base_lm_state, amortization_state = model_states(model)
    is_t5 = model.config.amortization.kind == "t5"
    written: dict[str, Any] = {
        "name": model.config.name,
        "config": model.config,
        "base_lm_config": plain_config(model.base_lm.model.config),
        "encoder_config": T5_CONFIG if is_t5 else _encoder_config(model.amortization),
        "base_lm_state": base_lm_state,
        "amortization_state": amortization_state,
        "tokenizer_json": model.tokenizer.json,
        "dtype": "float32",
        "training": {"weights": "random"},
    }
    save_bundle(path, **(written | changes))
    return path


def _encoder_config(amortization: Any) -> dict[str, Any]:
    if isinstance(amortization, LatentAmortization):
        return amortization.encoder_config
    return plain_config(amortization.encoder.config)


def base_lm_config(kind: LMKind, *, is_decoder: bool = True) -> dict[str, Any]:
    """A Hugging Face configuration as plain values, without dropout."""
    common = {"model_type": kind, "vocab_size": VOCABULARY, "initializer_range": 0.2}
    own: Mapping[LMKind, dict[str, Any]] = {
        "gpt2": {
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": MAX_POSITIONS,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            **dict.fromkeys(("bos_token_id", "eos_token_id"), 3),
        },
        "llama": _grouped_query(),
        "qwen2": _grouped_query(),
        "bert": {
            **_width(),
            "is_decoder": is_decoder,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }
    return common | own[kind]


def _width() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_POSITIONS,
    }


def _grouped_query() -> dict[str, Any]:
    return {**_width(), "num_key_value_heads": KV_HEADS, "bos_token_id": 2, "eos_token_id": 3}


def _aggregation(
    kind: Literal["attend", "select"], d_modulation: int, *, max_group: int
) -> AggregationConfig:
    return AggregationConfig(
        kind=kind,
        d_modulation=d_modulation,
        d_question=WIDTH,
        max_group=max_group,
        num_blocks=2,
        num_heads=2,
        head_dim=16,
        d_feedforward=64,
        d_score=16,
    )


def _build(
    config: ModelConfig, kind: LMKind, encoder_config: Mapping[str, Any], *, seed: int
) -> MacModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            config,
            base_lm=BaseLM.from_config(base_lm_config(kind)),
            encoder_config=encoder_config,
            tokenizer_json=tiny_tokenizer_json(),
        ).eval()
