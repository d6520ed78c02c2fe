"""Work cut into parts: what one batch, or one window, takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def parts_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, `size` at a time; the last part may be smaller."""
    return (items[first : first + size] for first in range(0, len(items), size))
