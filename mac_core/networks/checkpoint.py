"""Bundles on disk: weights in safetensors, and a manifest that says what belongs together.

Nothing is unpickled and nothing is loaded leniently: a file, key, shape or hash that does not
match is a `CheckpointError` by name. Knows no network: `load_strictly` takes any module.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn

from mac_core.config import ModelConfig
from mac_core.errors import CheckpointError
from mac_core.networks.files import beside, read_json, replace_directory, to_json, write_file
from mac_core.networks.manifest import (
    AMORTIZATION_WEIGHTS,
    BASE_LM_CONFIG,
    BASE_LM_WEIGHTS,
    ENCODER_CONFIG,
    MANIFEST,
    TOKENIZER,
    fingerprint_of,
    make_manifest,
    read_config,
    read_manifest,
)
from mac_core.networks.quantization import StoredDtype, pack_state, unpack_state
from mac_core.types import Fingerprint

MODEL_CARD = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """A verified bundle in memory; every floating tensor is float32."""

    config: ModelConfig
    base_lm_config: dict[str, Any]
    encoder_config: dict[str, Any] | None
    base_lm_state: dict[str, Tensor]
    amortization_state: dict[str, Tensor]  # everything trained that is not base LM
    tokenizer_json: str
    fingerprint: Fingerprint
    manifest: dict[str, Any]


def save_bundle(
    path: Path,
    *,
    name: str,
    config: ModelConfig,
    base_lm_config: Mapping[str, object],
    encoder_config: Mapping[str, object] | None,
    base_lm_state: Mapping[str, Tensor],
    amortization_state: Mapping[str, Tensor],
    tokenizer_json: str,
    dtype: StoredDtype,
    training: Mapping[str, object],
    model_card: str | None = None,
) -> None:
    """Write a bundle, replacing the one at `path`; no reader takes half of one for a whole.

    The same input gives the same bytes. Tensors that share their storage are stored once.

    Args:
        training: how it was trained, as JSON values; shown in the model card.
        model_card: text of MODEL_CARD.md; None: made from `training`.

    Raises:
        CheckpointError: `path` holds something else than a bundle, the tokenizer does not fit
            the base LM, or a tensor cannot be stored.
    """
    path = path.resolve()
    _check_replaceable(path)
    _check_tokenizer(tokenizer_json, base_lm_config)
    states = {BASE_LM_WEIGHTS: base_lm_state, AMORTIZATION_WEIGHTS: amortization_state}
    tied = {file: find_tied(state) for file, state in states.items()}
    staging = beside(path)
    try:
        for file, state in states.items():
            stored = {key: state[key] for key in state if key not in tied[file]}
            write_file(staging / file, safetensors.torch.save(pack_state(stored, dtype=dtype)))
        write_file(staging / TOKENIZER, tokenizer_json.encode())
        write_file(staging / BASE_LM_CONFIG, to_json(base_lm_config).encode())
        if encoder_config is not None:
            write_file(staging / ENCODER_CONFIG, to_json(encoder_config).encode())
        manifest = make_manifest(
            staging, name=name, config=config, dtype=dtype, tied=tied, training=training
        )
        write_file(staging / MANIFEST, to_json(manifest).encode())
        write_file(staging / MODEL_CARD, (model_card or _model_card(manifest)).encode())
        replace_directory(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_bundle(path: Path) -> BundleContents:
    """Read and verify a bundle.

    Raises:
        CheckpointError: a file or key is missing, unknown, or not what the manifest says.
    """
    manifest = read_manifest(path)
    config, files = read_config(manifest), manifest["files"]
    base_lm_config = read_json(path / BASE_LM_CONFIG)
    tokenizer_json = (path / TOKENIZER).read_bytes().decode()
    _check_tokenizer(tokenizer_json, base_lm_config)
    states = {
        file: _read_weights(path / file, tied=manifest["tied"][file])
        for file in (BASE_LM_WEIGHTS, AMORTIZATION_WEIGHTS)
    }
    return BundleContents(
        config=config,
        base_lm_config=base_lm_config,
        encoder_config=read_json(path / ENCODER_CONFIG) if ENCODER_CONFIG in files else None,
        base_lm_state=states[BASE_LM_WEIGHTS],
        amortization_state=states[AMORTIZATION_WEIGHTS],
        tokenizer_json=tokenizer_json,
        fingerprint=fingerprint_of(config, files),
        manifest=manifest,
    )


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, tied: Mapping[str, str] | None = None
) -> None:
    """Copy `state` into `module`, which must want exactly these names and shapes.

    Args:
        tied: name that `state` may lack -> name whose tensor it takes.

    Raises:
        CheckpointError: names every missing, unexpected and wrongly shaped tensor; `module` is
            then unchanged.
    """
    wanted = module.state_dict()
    aliases = {alias: state[name] for alias, name in (tied or {}).items() if name in state}
    filled = {**aliases, **state}
    complaints = [f"{name} is missing" for name in sorted(set(wanted) - set(filled))]
    complaints += [f"{name} is unexpected" for name in sorted(set(filled) - set(wanted))]
    complaints += [
        f"{name} has shape {tuple(filled[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in sorted(set(filled) & set(wanted))
        if filled[name].shape != wanted[name].shape
    ]
    complaints += [
        f"{alias} differs from {(tied or {})[alias]}, to which it is tied"
        for alias, tensor in aliases.items()
        if not torch.equal(filled[alias], tensor)
    ]
    if complaints:
        raise CheckpointError(f"{type(module).__name__}: " + "; ".join(complaints))
    module.load_state_dict(filled, strict=True)


def find_tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Find names whose tensor is the very same memory as an earlier one's: name -> earlier name."""
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:  # empty tensors all have the same address
            continue
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        earlier = first.setdefault(place, name)
        if earlier != name:
            tied[name] = earlier
    return tied


def _read_weights(path: Path, *, tied: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        state = unpack_state(safetensors.torch.load_file(path))
    except (SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    for alias, name in tied.items():
        if name not in state or alias in state:
            raise CheckpointError(f"{path.name}: {alias} cannot be tied to {name}")
        state[alias] = state[name]
    return state


def _check_replaceable(path: Path) -> None:
    if path.is_dir() and (not any(path.iterdir()) or (path / MANIFEST).is_file()):
        return
    if path.exists():
        raise CheckpointError(f"{path} exists and is not a bundle")


def _check_tokenizer(tokenizer_json: str, base_lm_config: Mapping[str, object]) -> None:
    try:
        num_tokens = Tokenizer.from_str(tokenizer_json).get_vocab_size()
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{TOKENIZER}: {error}") from error
    vocab_size = base_lm_config.get("vocab_size")
    if isinstance(vocab_size, int) and num_tokens > vocab_size:
        raise CheckpointError(
            f"{TOKENIZER} has {num_tokens} tokens, the base LM's vocab_size is {vocab_size}"
        )


def _model_card(manifest: Mapping[str, Any]) -> str:
    rows = "".join(f"| {key} | {value} |\n" for key, value in manifest["training"].items())
    return (
        f"# {manifest['name']}\n\nWritten by {manifest['created_by']}, weights as "
        f"{manifest['dtype']}.\n\n| training | |\n|---|---|\n{rows}"
    )
