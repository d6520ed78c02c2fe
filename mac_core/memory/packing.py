"""Numbers in few bits: a row of values as packed codes and float16 scales. Knows no modulation.

8 bits are rounded to 255 steps of a block's largest value. 4 and 2 bits are rotated first, by a
Hadamard transform with fixed random signs, which spreads a few large values over their block and
leaves values that are close to normal (as in QuIP#, arXiv 2402.04396, section 3); normal values
have best levels that are known (Max 1960, "Quantizing for minimum distortion", table I).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mac_core.config import ModulationBits

BLOCK = 128  # values that share a scale; the last block of a row may be shorter
STEPS = 127  # of 8 bits, on either side of zero
_SEED = 2403_04317  # of the signs: what is stored was rotated by them, so it can never change
# The positive half of the best levels for a standard normal variable.
_LEVELS: dict[int, tuple[float, ...]] = {
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0691, 2.7326),
}


def encode_rows(values: Tensor, *, bits: ModulationBits) -> tuple[Tensor, Tensor | None]:
    """Store float `(rows, width)` with `bits` for each value.

    Returns:
        `(rows, ceil(width * bits / 8))` uint8 for 4 and 2 bits, `(rows, width)` int8, float16 or
        float32 above; and float16 scales `(rows, ceil(width / BLOCK))`, None above 8 bits.

    Raises:
        ValueError: a value is not finite or too large for float16 (its scale, at 8 bits and less).
    """
    values = values.float().contiguous()
    if bits >= 16:
        stored = values.half() if bits == 16 else values.clone()
        _check_finite(stored, values, what="is no finite float16" if bits == 16 else "not finite")
        return stored, None
    if bits == 8:
        return _to_steps(values)
    codes, scales = _to_levels(_rotate(values), bits=bits)
    return _pack(codes, bits=bits), scales


def decode_rows(
    stored: Tensor, scales: Tensor | None, *, bits: ModulationBits, width: int
) -> Tensor:
    """Undo `encode_rows`: float32 `(rows, width)`, each row a function of its own codes alone.

    Raises:
        ValueError: the shapes do not go together.
    """
    if bits >= 16:
        return stored.float()
    if scales is None or scales.shape != (len(stored), -(-width // BLOCK)):
        raise ValueError(f"{bits} bits of width {width} do not go with scales {_shape(scales)}")
    if stored.shape[1] != -(-width * bits // 8):
        raise ValueError(f"{bits} bits of width {width} are not {stored.shape[1]} bytes")
    spread = scales.float().repeat_interleave(BLOCK, dim=1)[:, :width]
    if bits == 8:
        return stored.float() * spread
    found = _levels_of_bytes(bits).index_select(0, stored.int().flatten())
    values = found.view(len(stored), stored.shape[1] * (8 // bits))[:, :width]
    return _rotate_back(values * spread)


def _to_steps(values: Tensor) -> tuple[Tensor, Tensor]:
    width = values.shape[1]
    blocks = _blocks(values)  # (rows, blocks, BLOCK)
    scales = (blocks.abs().amax(dim=-1) / STEPS).half()  # (rows, blocks)
    _check_finite(scales, values, what="has no float16 scale")
    # The rounded scale divides, as it multiplies later; zero where it underflowed.
    divisors = scales.float().unsqueeze(-1)
    steps = torch.where(divisors > 0, blocks / divisors, 0).round().clamp(-STEPS, STEPS)
    return steps.to(torch.int8).flatten(1)[:, :width].contiguous(), scales


def _to_levels(values: Tensor, *, bits: int) -> tuple[Tensor, Tensor]:
    """Codes `(rows, width)`, int64, and the scales that fit them best."""
    width = values.shape[1]
    levels = _all_levels(bits)
    blocks = _blocks(values)  # (rows, blocks, BLOCK), padded with zeros
    is_value = _blocks(torch.ones_like(values))
    spread = (blocks.square().sum(-1, keepdim=True) / is_value.sum(-1, keepdim=True)).sqrt()
    normal = torch.where(spread > 0, blocks / spread, 0)
    codes = torch.bucketize(normal, (levels[1:] + levels[:-1]) / 2)
    chosen = levels[codes] * is_value
    # Least squares once the codes are known: no block comes back further away than zeros are.
    scales = ((blocks * chosen).sum(-1) / chosen.square().sum(-1)).half()
    _check_finite(scales, values, what="has no float16 scale")
    return codes.flatten(1)[:, :width], scales


def _all_levels(bits: int) -> Tensor:
    """Ascending, `(2 ** bits,)`."""
    half = torch.tensor(_LEVELS[bits])
    return torch.cat([-half.flip(0), half])


def _blocks(values: Tensor) -> Tensor:
    """`(rows, width)` -> `(rows, ceil(width / BLOCK), BLOCK)`, padded with zeros."""
    padded: Tensor = F.pad(values, (0, -values.shape[1] % BLOCK))
    return padded.view(len(values), padded.shape[1] // BLOCK, BLOCK)


def _pack(codes: Tensor, *, bits: int) -> Tensor:
    """`(rows, width)` codes -> `(rows, ceil(width * bits / 8))` uint8, the first value lowest."""
    each = 8 // bits
    padded: Tensor = F.pad(codes, (0, -codes.shape[1] % each))
    grouped = padded.view(len(codes), padded.shape[1] // each, each)
    return (grouped << bits * torch.arange(each)).sum(-1).to(torch.uint8)


@cache
def _levels_of_bytes(bits: int) -> Tensor:
    """The levels that each byte stands for, in order: `(256, 8 / bits)`."""
    codes = torch.arange(256)[:, None] // 2 ** (bits * torch.arange(8 // bits)) % 2**bits
    return _all_levels(bits)[codes]


# The rotation.


def _rotate(values: Tensor) -> Tensor:
    return _hadamard(values * _signs(values.shape[1]))


def _rotate_back(values: Tensor) -> Tensor:
    return _hadamard(values) * _signs(values.shape[1])


@cache
def _signs(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    signs: Tensor = torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
    return signs


def _hadamard(values: Tensor) -> Tensor:
    """The orthonormal transform of each run of values; its own inverse.

    A run is the largest power of two that divides the width, up to `BLOCK`. Sums and differences
    rather than a matrix product, whose rounding would depend on the number of rows.
    """
    rows, width = values.shape
    run = min(BLOCK, width & -width)
    size = 1
    while size < run:
        left, right = values.view(rows, width // (2 * size), 2, size).unbind(2)
        values = torch.stack([left + right, left - right], dim=2).view(rows, width)
        size *= 2
    scale: float = run**-0.5
    return values * scale


def _check_finite(stored: Tensor, values: Tensor, *, what: str) -> None:
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(f"a value of up to {float(values.abs().max())} {what}")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
