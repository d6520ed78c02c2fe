"""Integers in the narrowest type that holds them, exactly: token ids, offsets, places."""

from __future__ import annotations

import torch
from torch import Tensor

_UNSIGNED = (torch.uint8, torch.uint16)
_SIGNED = (torch.int8, torch.int16)


def narrow_ids(ids: Tensor) -> Tensor:
    """Token ids as uint16 where the largest fits, else int32."""
    return _narrowest(ids, (torch.uint16, torch.int32))


def narrow_places(places: Tensor) -> Tensor:
    """Numbers from zero as uint8, uint16 or int32."""
    return _narrowest(places, (*_UNSIGNED, torch.int32))


def offset_steps(offsets: Tensor) -> Tensor:
    """Character ranges `(tokens, 2)` as (gap after the token before, own length): int8 mostly."""
    starts, ends = offsets.long().unbind(1)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), ends])[: len(ends)]
    return _narrowest(torch.stack([starts - before, ends - starts], dim=1), (*_SIGNED, torch.int32))


def cumulate(steps: Tensor) -> Tensor:
    """Undo `offset_steps`: int64 `(tokens, 2)`."""
    gaps, lengths = steps.long().unbind(1)
    ends = (gaps + lengths).cumsum(0)
    return torch.stack([ends - lengths, ends], dim=1)


def _narrowest(values: Tensor, types: tuple[torch.dtype, ...]) -> Tensor:
    """`values` as the first of `types` that holds them all; the last one holds any."""
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    fits = [t for t in types if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max]
    return values.to(fits[0] if fits else types[-1]).contiguous()
