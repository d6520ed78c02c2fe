"""A modulation in few bits: what the store writes and the bank holds in RAM. Tensors on the CPU.

Slots may share vectors (`compaction`); codes and scales: `packing`, `codebook`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.memory.codebook import Codebook
from mac_core.memory.narrowing import cumulate, narrow_ids, narrow_places, offset_steps
from mac_core.memory.packing import decode_rows, encode_rows
from mac_core.types import Modulation

POINTER_LIMIT = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotEncoding:
    """How the slots lie in bytes."""

    width: int  # d_modulation
    bits: ModulationBits = 8  # of a value; a codebook's parts take 8 bits each
    codebook_id: str | None = None  # of `Codebook`; None: the values themselves are stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredModulation:
    """One chunk's modulation, quantised; `unpack` is a pure function of it.

    The live bank reads the same bytes as a reopened one, so a restart changes no answer.
    """

    encoding: SlotEncoding
    slots: Tensor  # (vectors, ...), as `encoding` says
    selection_key: Tensor  # (d_selection,), float16
    token_ids: Tensor  # (tokens,), the narrowest integer that holds them
    token_offsets: Tensor  # (tokens, 2), the same, as steps: `narrowing.offset_steps`
    slot_scales: Tensor | None = None  # (vectors, blocks), float16
    slot_center: Tensor | None = None  # (1, d_modulation), float16: the vectors' mean, taken off
    slot_vectors: Tensor | None = (
        None  # (virtual_tokens,), which vector each slot is; None: its own
    )
    pointer_keys: Tensor | None = None  # (tokens, d_pointer), int8
    pointer_scales: Tensor | None = None  # (tokens, 1), float16
    codebook: Codebook | None = None  # not stored here: `bound`

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, absent ones left out."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                yield item.name, value

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    @property
    def num_slots(self) -> int:
        return len(self.slots if self.slot_vectors is None else self.slot_vectors)

    def selection_key_float(self) -> Tensor:
        """`(d_selection,)` float32, unit length again after float16."""
        return F.normalize(self.selection_key.float(), dim=0)

    def unpack(self) -> Modulation:
        """The modulation as the networks read it: float32, int64.

        Raises:
            ValueError: its codebook was not bound.
        """
        pointer_keys = None
        if self.pointer_keys is not None and self.pointer_scales is not None:
            pointer_keys = self.pointer_keys.float() * self.pointer_scales.float()
        return Modulation(
            slots=self._slots(),
            selection_key=self.selection_key_float(),
            token_ids=self.token_ids.long(),
            token_offsets=cumulate(self.token_offsets),
            pointer_keys=pointer_keys,
        )

    def _slots(self) -> Tensor:
        """`(virtual_tokens, width)`, float32."""
        if self.encoding.codebook_id is None:
            bits, width = self.encoding.bits, self.encoding.width
            vectors = decode_rows(self.slots, self.slot_scales, bits=bits, width=width)
            if self.slot_center is not None:
                vectors = vectors + self.slot_center.float()
        elif self.codebook is None:
            raise ValueError(f"codebook {self.encoding.codebook_id} is not at hand")
        else:
            vectors = self.codebook.decode(self.slots)
        return vectors if self.slot_vectors is None else vectors[self.slot_vectors.long()]


def pack(modulation: Modulation, *, bits: ModulationBits = DEFAULT_BITS) -> StoredModulation:
    """Quantise slots to `bits` for each value; pointer keys to 8, with a float16 scale by token.

    Raises:
        ValueError: a value is not finite or too large for float16.
    """
    pointer_keys = pointer_scales = None
    if modulation.pointer_keys is not None:
        pointer_keys, pointer_scales = _by_token(_on_cpu(modulation.pointer_keys).float())
    return StoredModulation(
        **_encoded(_on_cpu(modulation.slots), bits=bits),
        selection_key=_on_cpu(modulation.selection_key).half(),
        token_ids=narrow_ids(_on_cpu(modulation.token_ids)),
        token_offsets=offset_steps(_on_cpu(modulation.token_offsets)),
        pointer_keys=pointer_keys,
        pointer_scales=pointer_scales,
    )


def with_vectors(
    stored: StoredModulation, vectors: Tensor, slot_vectors: Tensor | None, *, bits: ModulationBits
) -> StoredModulation:
    """The same chunk with other slots: slot i is row `slot_vectors[i]` of float `vectors`.

    Args:
        slot_vectors: `(virtual_tokens,)`; None: row i.
    """
    return replace(
        stored,
        **_encoded(vectors, bits=bits),
        slot_vectors=None if slot_vectors is None else narrow_places(slot_vectors),
        codebook=None,
    )


def with_codebook(stored: StoredModulation, slots: Tensor, codebook: Codebook) -> StoredModulation:
    """The same chunk with its slots, float `(virtual_tokens, width)`, in a codebook's codes."""
    return replace(
        stored,
        encoding=SlotEncoding(width=slots.shape[1], codebook_id=codebook.id),
        slots=codebook.encode(slots),
        slot_scales=None,
        slot_center=None,
        slot_vectors=None,
        codebook=codebook,
    )


def _encoded(vectors: Tensor, *, bits: ModulationBits) -> dict[str, Any]:
    """What `StoredModulation` keeps of float `(vectors, width)`.

    A chunk's slots have much in common: below 8 bits their mean is stored beside them, once.
    """
    center = None
    if bits < 8 and len(vectors) > 1:
        center = vectors.mean(0, keepdim=True).half()
        vectors = vectors - center.float()
    slots, scales = encode_rows(vectors, bits=bits)
    return {
        "encoding": SlotEncoding(width=vectors.shape[1], bits=bits),
        "slots": slots,
        "slot_scales": scales,
        "slot_center": center,
    }


def _by_token(keys: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `(tokens, d_pointer)` and float16 scales `(tokens, 1)`."""
    scales = (keys.abs().amax(dim=-1, keepdim=True) / POINTER_LIMIT).half()
    if not bool(torch.isfinite(scales).all()):
        raise ValueError(f"pointer keys up to {float(keys.abs().max())} have no float16 scale")
    divisors = scales.float()
    steps = torch.where(divisors > 0, keys / divisors, 0).round()
    return steps.clamp(-POINTER_LIMIT, POINTER_LIMIT).to(torch.int8), scales


def _on_cpu(tensor: Tensor) -> Tensor:
    # A copy: a row of a batch would keep the whole batch alive.
    return tensor.detach().to("cpu", copy=True).contiguous()
