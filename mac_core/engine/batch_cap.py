"""How many rows fit a forward pass: halved when memory runs out, recovered slowly."""

from __future__ import annotations

import torch

# What torch's CPU allocator says in a plain RuntimeError.
_CPU_ALLOCATOR = "not enough memory"
_CPU_ALLOCATOR_OLD = "can't allocate memory"


class BatchCap:
    """At most `value` rows; between 1 and `limit`. Engine thread only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.value = limit

    def halve(self, failed_size: int) -> None:
        """`failed_size` rows were too many."""
        self.value = max(1, min(self.value, failed_size // 2))

    def grow(self, succeeded_size: int) -> None:
        """Allow one row more, if the batch that succeeded was as large as allowed."""
        if succeeded_size >= self.value:
            self.value = min(self.limit, self.value + 1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer rows might succeed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        _CPU_ALLOCATOR in message or _CPU_ALLOCATOR_OLD in message
    )
