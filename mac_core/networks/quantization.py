"""Weights as they lie on disk: int8 rows with a scale each, bfloat16, or float32.

Absolute-maximum scaling by row, symmetric, as in arXiv 2208.07339 section 2 without outliers.
Knows tensors and their names, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mac_core.errors import CheckpointError

StoredDtype = Literal["float32", "bfloat16", "int8"]

MIN_PACKED_ELEMENTS = 4096  # below, a tensor weighs nothing and stays float32
_INT8, _SCALE = ".int8", ".scale"


def quantize_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row (last axis) to 255 steps of its own size.

    Returns:
        int8 `(..., columns)` and float32 scales `(...)`; the error of a value is at most half
        its row's scale.

    Raises:
        ValueError: a value is not finite.
    """
    values = tensor.detach().float()
    if not torch.isfinite(values).all():
        raise ValueError("a value is not finite")
    scale = values.abs().amax(dim=-1) / 127
    # A row of zeros (or too small for its scale to be a float32) divides by one instead.
    steps = values / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantize_rows(quantized: Tensor, scale: Tensor) -> Tensor:
    """Undo `quantize_rows`: float32 `(..., columns)`."""
    return quantized.float() * scale.float().unsqueeze(-1)


def pack_state(state: Mapping[str, Tensor], *, dtype: StoredDtype) -> dict[str, Tensor]:
    """Convert weights for storage; `name` becomes `name.int8` and `name.scale` where quantized.

    Matrices of at least `MIN_PACKED_ELEMENTS` take `dtype`, other floating tensors float32,
    integers and booleans stay as they are. The result shares no storage with `state`.

    Raises:
        CheckpointError: a tensor is not finite, or two would be stored under one name.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for stored_name, stored in _pack(name, tensor.detach().cpu(), dtype=dtype).items():
            if stored_name in packed:
                raise CheckpointError(f"{stored_name}: two tensors would be stored under this name")
            packed[stored_name] = stored
    return packed


def unpack_state(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack_state`; every floating tensor is float32.

    Raises:
        CheckpointError: a quantized tensor lacks its scales, or their shapes disagree.
    """
    quantized = {name.removesuffix(_INT8) for name in packed if name.endswith(_INT8)}
    scales = {name + _SCALE for name in quantized}
    state: dict[str, Tensor] = {}
    for stored_name, stored in packed.items():
        if stored_name.endswith(_INT8):
            name = stored_name.removesuffix(_INT8)
            state[name] = _dequantize(name, stored, packed.get(name + _SCALE))
        elif stored_name not in scales:
            state[stored_name] = stored.float() if stored.is_floating_point() else stored
    return state


def _pack(name: str, tensor: Tensor, *, dtype: StoredDtype) -> dict[str, Tensor]:
    if not tensor.is_floating_point():
        return {name: tensor.clone(memory_format=torch.contiguous_format)}
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name}: a value is not finite")
    is_large = tensor.ndim >= 2 and tensor.numel() >= MIN_PACKED_ELEMENTS
    if dtype == "int8" and is_large:
        quantized, scale = quantize_rows(tensor)
        return {name + _INT8: quantized.contiguous(), name + _SCALE: scale.contiguous()}
    kept = torch.bfloat16 if dtype == "bfloat16" and is_large else torch.float32
    return {name: tensor.to(kept, copy=True, memory_format=torch.contiguous_format)}


def _dequantize(name: str, quantized: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        raise CheckpointError(f"{name + _INT8} has no {name + _SCALE}")
    if quantized.dtype != torch.int8 or scale.shape != quantized.shape[:-1]:
        raise CheckpointError(
            f"{name}: {quantized.dtype} {tuple(quantized.shape)} does not go with "
            f"scales {tuple(scale.shape)}"
        )
    return dequantize_rows(quantized, scale)
