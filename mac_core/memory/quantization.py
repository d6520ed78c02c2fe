"""A modulation in int8: what the store writes and the bank holds in RAM. All tensors on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from mac_core.types import Modulation

BLOCK = 128  # values that share a scale; the last block of a row may be shorter
LEVELS = 127


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredModulation:
    """One chunk's modulation, quantised; `unpack` is a pure function of it.

    The live bank reads the same int8 as a reopened one, so a restart changes no answer.
    """

    slots: Tensor  # (virtual_tokens, d_modulation), int8
    slot_scales: Tensor  # (virtual_tokens, ceil(d_modulation / BLOCK)), float16
    selection_key: Tensor  # (d_selection,), float16
    token_ids: Tensor  # (tokens,), int32
    token_offsets: Tensor  # (tokens, 2), int32
    pointer_keys: Tensor | None = None  # (tokens, d_pointer), int8
    pointer_scales: Tensor | None = None  # (tokens, 1), float16

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, absent ones left out."""
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                yield item.name, value

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    def selection_key_float(self) -> Tensor:
        """`(d_selection,)` float32, unit length again after float16."""
        return F.normalize(self.selection_key.float(), dim=0)

    def unpack(self) -> Modulation:
        """The modulation as the networks read it: float32, int64."""
        pointer_keys = None
        if self.pointer_keys is not None and self.pointer_scales is not None:
            width = self.pointer_keys.shape[1]
            pointer_keys = _dequantise(self.pointer_keys, self.pointer_scales, block=width)
        return Modulation(
            slots=_dequantise(self.slots, self.slot_scales, block=BLOCK),
            selection_key=self.selection_key_float(),
            token_ids=self.token_ids.long(),
            token_offsets=self.token_offsets.long(),
            pointer_keys=pointer_keys,
        )


def pack(modulation: Modulation) -> StoredModulation:
    """Quantise: slots in blocks of 128 values, pointer keys by token, a float16 scale for each.

    Raises:
        ValueError: a value is not finite or too large for a float16 scale.
    """
    slots, slot_scales = _quantise(modulation.slots, block=BLOCK)
    pointer_keys = pointer_scales = None
    if modulation.pointer_keys is not None:
        width = modulation.pointer_keys.shape[1]
        pointer_keys, pointer_scales = _quantise(modulation.pointer_keys, block=width)
    return StoredModulation(
        slots=slots,
        slot_scales=slot_scales,
        selection_key=_on_cpu(modulation.selection_key).half(),
        token_ids=_on_cpu(modulation.token_ids).int(),
        token_offsets=_on_cpu(modulation.token_offsets).int(),
        pointer_keys=pointer_keys,
        pointer_scales=pointer_scales,
    )


def _on_cpu(tensor: Tensor) -> Tensor:
    # A copy: a row of a batch would keep the whole batch alive.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _quantise(values: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """int8 `(rows, width)` and float16 scales `(rows, ceil(width / block))`."""
    values = _on_cpu(values).float()
    rows, width = values.shape
    num_blocks = -(-width // block)
    padded = F.pad(values, (0, num_blocks * block - width))
    blocks = padded.view(rows, num_blocks, block)
    scales = (blocks.abs().amax(dim=-1) / LEVELS).half()  # (rows, blocks)
    if not bool(torch.isfinite(scales).all()):
        raise ValueError(f"values up to {float(values.abs().max())} have no float16 scale")
    # The rounded scale divides, as it multiplies later; zero where it underflowed.
    divisors = scales.float().unsqueeze(-1)
    levels = torch.where(divisors > 0, blocks / divisors, 0).round().clamp(-LEVELS, LEVELS)
    quantised = levels.to(torch.int8).view(rows, num_blocks * block)[:, :width]
    return quantised.contiguous(), scales


def _dequantise(quantised: Tensor, scales: Tensor, *, block: int) -> Tensor:
    """float32 `(rows, width)`."""
    spread = scales.float().repeat_interleave(block, dim=1)[:, : quantised.shape[1]]
    return quantised.float() * spread
