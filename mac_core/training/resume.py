"""Stop a training run and go on as if it had not stopped: weights, optimizer, random states.

One safetensors file with the scalars as JSON in its header, replaced by one rename: a crash
leaves the state before or the state after, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from mac_core.errors import CheckpointError
from mac_core.networks.checkpoint import find_tied, load_strictly
from mac_core.networks.files import replace_file

_MODEL, _OPTIMIZER, _TORCH_RNG = "model.", "optimizer.", "torch_rng."


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run had come."""

    step: int
    notes: dict[str, Any]  # the trainer's own JSON values: stage, seconds spent, best score


def save_training_state(
    path: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    rng: np.random.Generator,
    step: int,
    notes: Mapping[str, object] | None = None,
) -> None:
    """Write everything that the next step depends on, torch's own random states included."""
    state = model.state_dict()
    tied = find_tied(state)
    optimizer_tensors, optimizer_scalars = flatten_optimizer_state(optimizer)
    tensors = {
        **{_MODEL + name: value for name, value in state.items() if name not in tied},
        **{_OPTIMIZER + name: value for name, value in optimizer_tensors.items()},
        **{_TORCH_RNG + name: value for name, value in _torch_rng_states().items()},
    }
    scalars = {
        "step": step,
        "notes": dict(notes or {}),
        "tied": tied,
        "optimizer": optimizer_scalars,
        "numpy_rng": rng.bit_generator.state,
    }
    stored = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    header = {"training": json.dumps(scalars)}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, safetensors.torch.save(stored, metadata=header))


def load_training_state(
    path: Path, *, model: nn.Module, optimizer: Optimizer, rng: np.random.Generator
) -> Progress:
    """Put `model`, `optimizer`, `rng` and torch's random states where they were.

    Raises:
        CheckpointError: the file is missing or damaged, or is of another model or optimizer.
    """
    tensors, scalars = _read(path)
    load_strictly(model, _under(_MODEL, tensors), tied=scalars["tied"])
    restore_optimizer_state(optimizer, _under(_OPTIMIZER, tensors), scalars["optimizer"])
    rng.bit_generator.state = scalars["numpy_rng"]
    _restore_torch_rng(_under(_TORCH_RNG, tensors))
    return Progress(step=scalars["step"], notes=scalars["notes"])


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint, without its tensors.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with _opened(path) as file:
        notes: dict[str, Any] = _scalars(file)["notes"]
        return notes


def flatten_optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into named tensors and JSON values.

    Returns:
        Tensors named `<parameter index>.<slot>`, and everything else; the shapes of the
        parameters are kept to recognise the model again.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, object]] = {}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{slot}"] = value
            else:
                scalars.setdefault(str(index), {})[slot] = value
    shapes = [list(parameter.shape) for parameter in _parameters(optimizer)]
    return tensors, {"state": scalars, "groups": state["param_groups"], "shapes": shapes}


def restore_optimizer_state(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Undo `flatten_optimizer_state` on an optimizer made for the same parameters.

    Raises:
        CheckpointError: the parameters, their groups or the groups' settings are others.
    """
    shapes = [list(parameter.shape) for parameter in _parameters(optimizer)]
    if shapes != scalars["shapes"]:
        raise CheckpointError(f"optimizer: parameters {scalars['shapes']}, this one has {shapes}")
    current = optimizer.state_dict()["param_groups"]
    if len(current) != len(scalars["groups"]):
        raise CheckpointError(
            f"optimizer: {len(scalars['groups'])} groups, this one has {len(current)}"
        )
    groups = [_restored_group(*pair) for pair in zip(current, scalars["groups"], strict=True)]
    state: dict[int, dict[str, object]] = {
        int(index): dict(slots) for index, slots in scalars["state"].items()
    }
    for name, tensor in tensors.items():
        index, _, slot = name.partition(".")
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _restored_group(current: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """A stored group with the tuples that JSON made lists."""
    if set(current) != set(stored) or current["params"] != stored["params"]:
        raise CheckpointError(
            f"optimizer: a group with {sorted(stored)}, this one has {sorted(current)}"
        )
    return {
        key: tuple(value) if isinstance(current[key], tuple) else value
        for key, value in stored.items()
    }


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _scalars(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: no training state: {error}") from error


def _scalars(file: Any) -> dict[str, Any]:
    scalars: dict[str, Any] = json.loads((file.metadata() or {})["training"])
    return scalars


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _torch_rng_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_torch_rng(states: Mapping[str, Tensor]) -> None:
    """Set the random states of the devices that are here; a run may go on elsewhere."""
    torch.set_rng_state(states["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda{i}"], i)
