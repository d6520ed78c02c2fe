"""The manifest of a bundle: what its files are, how they hash, and what they are together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mac_core import __version__
from mac_core.config import ModelConfig, from_dict, to_dict
from mac_core.errors import CheckpointError
from mac_core.networks.files import read_json, sha256_file
from mac_core.networks.quantization import StoredDtype
from mac_core.types import Fingerprint

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
BASE_LM_WEIGHTS = "base_lm.safetensors"
BASE_LM_CONFIG = "base_lm/config.json"
AMORTIZATION_WEIGHTS = "amortization.safetensors"
ENCODER_CONFIG = "encoder/config.json"  # only where the amortization network needs one

# Settings that bundles were made without, as they then were: these enter no hash.
_SINCE: Mapping[str, object] = {"selection_layers": None, "document_position": 0}

_WEIGHTS = frozenset({BASE_LM_WEIGHTS, AMORTIZATION_WEIGHTS})
_ALWAYS = _WEIGHTS | {TOKENIZER, BASE_LM_CONFIG}
_KEYS = frozenset(
    {
        "format_version",
        "name",
        "created_by",
        "dtype",
        "config",
        "files",  # path -> sha256, hex
        "tied",  # weights file -> {name: the name whose tensor it shares}
        "amortization_hash",
        "base_lm_hash",
        "training",
    }
)


def make_manifest(
    directory: Path,
    *,
    name: str,
    config: ModelConfig,
    dtype: StoredDtype,
    tied: Mapping[str, Mapping[str, str]],
    training: Mapping[str, object],
) -> dict[str, Any]:
    """Describe the bundle files that lie in `directory`."""
    present = [item for item in (*_ALWAYS, ENCODER_CONFIG) if (directory / item).is_file()]
    files = {item: sha256_file(directory / item) for item in present}
    fingerprint = fingerprint_of(config, files)
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created_by": f"mac-server {__version__}",
        "dtype": dtype,
        "config": to_dict(config),
        "files": files,
        "tied": tied,
        "amortization_hash": fingerprint.amortization_hash,
        "base_lm_hash": fingerprint.base_lm_hash,
        "training": dict(training),
    }


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest and verify everything it says about the files in `directory`.

    Raises:
        CheckpointError: a file or key is missing, unknown, or not what the manifest says.
    """
    manifest = read_json(directory / MANIFEST)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{MANIFEST}: format_version {version!r} is unknown, this program reads "
            f"{FORMAT_VERSION}"
        )
    _check_names("manifest key", set(manifest), required=_KEYS)
    for key in ("config", "files", "tied", "training"):
        if not isinstance(manifest[key], dict):
            raise CheckpointError(f"{MANIFEST}: {key} is not an object")
    _check_names("file", set(manifest["files"]), required=_ALWAYS, optional={ENCODER_CONFIG})
    _check_names("file with tied tensors", set(manifest["tied"]), required=_WEIGHTS)
    _check_files(directory, manifest["files"])
    fingerprint = fingerprint_of(read_config(manifest), manifest["files"])
    for key in ("amortization_hash", "base_lm_hash"):
        if manifest[key] != getattr(fingerprint, key):
            raise CheckpointError(f"{MANIFEST}: {key} does not follow from the files and config")
    return manifest


def read_config(manifest: Mapping[str, Any]) -> ModelConfig:
    """The manifest's model configuration.

    Raises:
        CheckpointError: a key is missing, unknown or out of its range.
    """
    try:
        return from_dict(ModelConfig, manifest["config"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST}: config: {error}") from error


def fingerprint_of(config: ModelConfig, files: Mapping[str, str]) -> Fingerprint:
    """Hash what a stored modulation depends on, and what the base LM is.

    How documents are chosen (`top_k`, scales) is left out: it changes answers, no modulation.
    """
    tokenizer = files[TOKENIZER]
    settings = to_dict(config.amortization)
    settings = {
        name: value for name, value in settings.items() if (name, value) not in _SINCE.items()
    }
    amortization = {
        "weights": files[AMORTIZATION_WEIGHTS],
        "encoder": files.get(ENCODER_CONFIG),
        "tokenizer": tokenizer,
        "amortization": settings,
        "pointer": to_dict(config.pointer) if config.pointer else None,
        "d_key": config.selection.d_key,
    }
    base_lm = {
        "weights": files[BASE_LM_WEIGHTS],
        "config": files[BASE_LM_CONFIG],
        "tokenizer": tokenizer,
    }
    return Fingerprint(amortization_hash=_hash(amortization), base_lm_hash=_hash(base_lm))


def _check_files(directory: Path, files: Mapping[str, str]) -> None:
    for name, expected in sorted(files.items()):
        if not (directory / name).is_file():
            raise CheckpointError(f"{name} is missing from {directory}")
        actual = sha256_file(directory / name)
        if actual != expected:
            raise CheckpointError(f"{name}: sha256 is {actual}, the manifest says {expected}")


def _check_names(
    kind: str, names: set[str], *, required: frozenset[str], optional: set[str] | None = None
) -> None:
    for missing in sorted(required - names):
        raise CheckpointError(f"{MANIFEST}: {kind} {missing!r} is missing")
    for unknown in sorted(names - required - (optional or set())):
        raise CheckpointError(f"{MANIFEST}: {kind} {unknown!r} is unknown")


def _hash(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
