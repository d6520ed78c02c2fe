"""Where modulations live: as many as allowed in RAM, the least recently used in mapped files.

The files are nameless and local, written from what the store has: nothing to recover or to trust
at the next start, and their space is back when the process ends, however it ends.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from mac_core.config import TierConfig
from mac_core.memory.quantization import StoredModulation
from mac_core.types import Modulation

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 1024**2  # of one file; given back when nothing in it is needed any more
RETRY_S = 60.0  # after there was no room for a file


class Segment:
    """One mapped file, filled from its beginning; gone with the last reference to it."""

    def __init__(self, directory: Path, *, num_bytes: int) -> None:
        """
        Raises:
            OSError: there is no room for it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            # All of it now: a mapped page without room behind it would kill the process.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            self._map = mmap.mmap(file.fileno(), num_bytes)
        self._filled = 0

    def takes(self, num_bytes: int) -> bool:
        return self._filled + num_bytes <= len(self._map)

    def write(self, content: bytes) -> int:
        """Where the content begins."""
        start = self._filled
        self._filled += len(content)
        self._map[start : self._filled] = content
        return start

    def read(self, start: int, num_bytes: int) -> bytes:
        return self._map[start : start + num_bytes]


class Place(NamedTuple):
    """Where a modulation was written; it stays there."""

    segment: Segment
    start: int
    num_bytes: int


class TieredModulation:
    """A `StoredModulation` in whichever tier; the same in each, bit for bit. Engine thread only."""

    __slots__ = ("_codebook", "_encoding", "_hot", "_place", "_tiers", "num_bytes")

    def __init__(self, tiers: Tiers, stored: StoredModulation) -> None:
        self.num_bytes = stored.num_bytes
        self._encoding = stored.encoding
        self._codebook = stored.codebook  # shared with others: it stays in RAM
        self._tiers: Tiers | None = tiers
        self._hot: StoredModulation | None = stored
        self._place: Place | None = None

    @property
    def is_hot(self) -> bool:
        return self._hot is not None

    def load(self) -> StoredModulation:
        """What it stands for; it is then the most recently used."""
        if self._tiers is not None:
            return self._tiers.touch(self)
        return self._hot or self.read()

    def unpack(self) -> Modulation:
        """As `StoredModulation.unpack`."""
        return self.load().unpack()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.load().tensors()

    def selection_key_float(self) -> Tensor:
        return self.load().selection_key_float()

    def release(self) -> None:
        """The bank no longer holds it; older views still read it."""
        if self._tiers is not None:
            self._tiers.forget(self)
            self._tiers = None

    def read(self) -> StoredModulation:
        """From its place in a file."""
        if self._place is None:
            raise ValueError("the modulation is in no file")
        segment, start, num_bytes = self._place
        tensors: dict[str, Any] = load(segment.read(start, num_bytes))
        return StoredModulation(encoding=self._encoding, codebook=self._codebook, **tensors)


class Tiers:
    """Keeps the modulations that are in RAM within a limit. Engine thread only; the sums: any."""

    def __init__(
        self,
        *,
        max_ram_bytes: int,
        directory: Path,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_ram_bytes = max_ram_bytes
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segment: Segment | None = None
        self._hot: OrderedDict[int, TieredModulation] = OrderedDict()  # the next to go first
        self._clock = clock
        self._full_at: float | None = None  # None: there was room for the last file
        self.ram_bytes = 0
        self.disk_bytes = 0

    def shelter(self, stored: StoredModulation) -> TieredModulation:
        """Take a modulation in; it is the most recently used."""
        tiered = TieredModulation(self, stored)
        self._warm(tiered, stored)
        return tiered

    def touch(self, tiered: TieredModulation) -> StoredModulation:
        """Bring it to RAM, and what is least recently used out."""
        if tiered._hot is not None:
            self._hot.move_to_end(id(tiered))
            return tiered._hot
        stored = tiered.read()
        self.disk_bytes -= tiered.num_bytes
        self._warm(tiered, stored)
        return stored

    def forget(self, tiered: TieredModulation) -> None:
        if self._hot.pop(id(tiered), None) is not None:
            self.ram_bytes -= tiered.num_bytes
        else:
            self.disk_bytes -= tiered.num_bytes

    def _warm(self, tiered: TieredModulation, stored: StoredModulation) -> None:
        tiered._hot = stored
        self._hot[id(tiered)] = tiered
        self.ram_bytes += tiered.num_bytes
        while self.ram_bytes > self._max_ram_bytes and self._may_try():
            self._cool(next(iter(self._hot.values())))

    def _may_try(self) -> bool:
        return self._full_at is None or self._clock() >= self._full_at + RETRY_S

    def _cool(self, tiered: TieredModulation) -> None:
        """Leave it to its file; while there is no room for one, RAM goes over its limit."""
        if tiered._place is None and tiered._hot is not None:
            try:
                tiered._place = self._write(tiered._hot)
            except OSError as error:
                if self._full_at is None:  # once, not every minute
                    logger.warning("modulations stay in RAM, over its limit: %s", error)
                self._full_at = self._clock()
                return
        del self._hot[id(tiered)]
        tiered._hot = None
        self.ram_bytes -= tiered.num_bytes
        self.disk_bytes += tiered.num_bytes

    def _write(self, stored: StoredModulation) -> Place:
        content = save({name: tensor.contiguous() for name, tensor in stored.tensors()})
        if self._segment is None or not self._segment.takes(len(content)):
            size = max(self._segment_bytes, len(content))
            self._segment = Segment(self._directory, num_bytes=size)
            self._full_at = None
        return Place(self._segment, self._segment.write(content), len(content))


def tiers_of(config: TierConfig) -> Tiers | None:
    """None: everything stays in RAM."""
    if config.max_ram_bytes is None:
        return None
    return Tiers(max_ram_bytes=config.max_ram_bytes, directory=Path(config.directory))
