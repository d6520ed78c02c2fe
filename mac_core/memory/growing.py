"""Sequences that grow at the end while readers keep what they were given: spare capacity is shared,
so that an append costs the new elements only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from torch import Tensor

T = TypeVar("T")


class GrowingTensor:
    """Rows appended into spare capacity; each `rows` is a view whose content never changes.

    Appending costs amortised the new rows only; keeping a part copies it to a fresh buffer.
    """

    def __init__(self, empty: Tensor) -> None:
        self._buffer = empty
        self._num_rows = len(empty)

    @property
    def rows(self) -> Tensor:
        """`(rows, ...)`; valid for ever, later appends do not touch it."""
        return self._buffer[: self._num_rows]

    def append(self, added: Tensor) -> None:
        needed = self._num_rows + len(added)
        if needed > len(self._buffer):
            capacity = max(needed, 2 * len(self._buffer), 16)
            grown = self._buffer.new_empty((capacity, *self._buffer.shape[1:]))
            grown[: self._num_rows] = self.rows
            self._buffer = grown
        self._buffer[self._num_rows : needed] = added.to(self._buffer)
        self._num_rows = needed

    def keep(self, kept: Tensor) -> None:
        """Keep the rows whose numbers are in `kept`, `(kept,)` int64, in that order."""
        self._buffer = self.rows[kept.to(self._buffer.device)]
        self._num_rows = len(kept)

    def fill(self, places: Tensor, value: float) -> None:
        """Set the rows `places`, `(places,)` int64, in a fresh buffer of the same capacity."""
        self._buffer = self._buffer.clone()
        self._buffer[places.to(self._buffer.device)] = value


class Prefix(Sequence[T]):
    """The first elements of a list that only ever grows: as good as a tuple, without the copy."""

    __slots__ = ("_items", "_length")

    def __init__(self, items: list[T], length: int) -> None:
        self._items = items
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[T, ...]: ...

    def __getitem__(self, place: int | slice) -> T | tuple[T, ...]:
        if isinstance(place, slice):
            return tuple(self._items[i] for i in range(*place.indices(self._length)))
        if not -self._length <= place < self._length:
            raise IndexError(f"{place} is not in [{-self._length}, {self._length})")
        return self._items[place % self._length]

    def __iter__(self) -> Iterator[T]:
        return (self._items[place] for place in range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list's: equality is by content


class GrowingList(Generic[T]):
    """Elements appended to one shared list; whatever else changes it makes a list of its own."""

    def __init__(self) -> None:
        self._items: list[T] = []

    @property
    def items(self) -> Prefix[T]:
        """All of them; valid for ever."""
        return Prefix(self._items, len(self._items))

    def append(self, added: Sequence[T]) -> None:
        self._items.extend(added)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep the elements at the places `kept`, in that order."""
        self._items = [self._items[place] for place in kept]

    def fill(self, places: Sequence[int], value: Any) -> None:
        """Set the elements at `places`."""
        self._items = list(self._items)
        for place in places:
            self._items[place] = value
