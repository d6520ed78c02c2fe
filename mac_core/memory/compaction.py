"""One chunk made smaller: in fewer bits, with fewer vectors, or in a codebook's codes.

Each method is a function of the chunk alone, except a codebook, which comes from the whole
namespace. What has been compacted is not compacted again: losses would add up unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast, get_args
from zlib import crc32

from torch import Tensor

from mac_core.config import DEFAULT_BITS, MODULATION_BITS, ModulationBits
from mac_core.errors import InvalidInput
from mac_core.memory.codebook import Codebook
from mac_core.memory.quantization import StoredModulation, with_codebook, with_vectors
from mac_core.memory.records import DocumentRecord, StoredChunk
from mac_core.memory.sharing import (
    Shared,
    average_neighbours,
    merge_nearest,
    prune_at_random,
    prune_untelling,
)

Method = Literal["bits", "average", "merge", "prune", "prune-random", "codebook"]
METHODS: tuple[Method, ...] = get_args(Method)
FLOAT_BITS = 32
MAX_TAIL = 8  # framing tokens after the content, at most


class Framing(Protocol):
    """What is needed of a layout: the ids of a framed document."""

    def document(self, ids: list[int]) -> list[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What is to become of every chunk of a namespace.

    `target` counts from float32: 4 is a byte for each value. `bits` fixes its own; the methods
    that share vectors leave so few of them, at `bits` for each value, that the target is met.
    """

    method: Method
    target: float  # times smaller than slots in float32, scales and places not counted
    bits: ModulationBits = DEFAULT_BITS  # of each value of a shared vector

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInput(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.bits not in MODULATION_BITS:
            raise InvalidInput(f"bits={self.bits} is not in {MODULATION_BITS}")
        if not 1 <= self.target <= 1024:
            raise InvalidInput(f"target={self.target} is not in [1, 1024]")
        allowed = [FLOAT_BITS // bits for bits in MODULATION_BITS]
        if self.method == "bits" and self.target not in allowed:
            raise InvalidInput(f"target={self.target} is no number of bits; those are {allowed}")

    @property
    def name(self) -> str:
        """As `parse_compaction` reads it."""
        shared = self.method not in ("bits", "codebook")
        return f"{self.method}:{self.target:g}" + (f"@{self.bits}" if shared else "")

    @property
    def value_bits(self) -> ModulationBits:
        """Of each value of the vectors that stay."""
        if self.method != "bits":
            return self.bits
        (bits,) = (bits for bits in MODULATION_BITS if bits * self.target == FLOAT_BITS)
        return bits

    def num_vectors(self, num_slots: int, *, bits: ModulationBits) -> int:
        """Of so many slots, how many vectors are left, each value of which takes `bits`."""
        if self.method == "bits":
            return num_slots
        return min(num_slots, max(1, round(num_slots * FLOAT_BITS / (bits * self.target))))

    def num_parts(self, width: int) -> int:
        """Bytes of a slot's codes: the most that meet the target and divide the width."""
        most = min(width, max(1, int(width * FLOAT_BITS / 8 / self.target)))
        return next(parts for parts in range(most, 0, -1) if width % parts == 0)


def make_compaction(method: str, *, target: float, bits: int) -> Compaction:
    """Of what a person typed.

    Raises:
        InvalidInput: there is no such compaction.
    """
    # Compaction itself checks both.
    return Compaction(method=cast(Method, method), target=target, bits=cast(ModulationBits, bits))


def parse_compaction(text: str) -> Compaction:
    """Read `METHOD:TARGET` or `METHOD:TARGET@BITS`, such as `merge:16@4`.

    Raises:
        InvalidInput: it is something else.
    """
    method, _, rest = text.strip().partition(":")
    target, _, bits = rest.partition("@")
    try:
        numbers = float(target), int(bits or DEFAULT_BITS)
    except ValueError as error:
        raise InvalidInput(f"{text!r} is not METHOD:TARGET or METHOD:TARGET@BITS") from error
    return make_compaction(method, target=numbers[0], bits=numbers[1])


def frame_head(layout: Framing) -> int:
    """How many framing tokens stand before a document's own."""
    return layout.document([-1]).index(-1)


def is_compacted(stored: StoredModulation) -> bool:
    """Whether something other than fewer bits was done to it already."""
    return stored.slot_vectors is not None or stored.encoding.codebook_id is not None


def compact_record(
    record: DocumentRecord,
    compaction: Compaction,
    *,
    codebook: Codebook | None = None,
    num_head: int = 0,
) -> DocumentRecord:
    """The document with every chunk as `compact_chunk` makes it; the very same if none changes."""
    chunks = tuple(
        compact_chunk(part, compaction, codebook=codebook, num_head=num_head)
        for part in record.chunks
    )
    pairs = zip(chunks, record.chunks, strict=True)
    return record if all(new is old for new, old in pairs) else replace(record, chunks=chunks)


def compact_chunk(
    part: StoredChunk,
    compaction: Compaction,
    *,
    codebook: Codebook | None = None,
    num_head: int = 0,
) -> StoredChunk:
    """The chunk under `compaction`; the very same object where there is nothing to gain.

    Args:
        codebook: for method codebook.
        num_head: framing tokens before the content, where slots are framed tokens.

    Raises:
        InvalidInput: method prune on slots that are not tokens.
        ValueError: no codebook for method codebook.
    """
    stored = part.stored
    if is_compacted(stored):
        return part
    if compaction.method == "codebook":
        if codebook is None:
            raise ValueError("method codebook without a codebook")
        coded = with_codebook(stored, stored.unpack().slots, codebook)
        return StoredChunk(chunk=part.chunk, stored=coded)
    bits = min(compaction.value_bits, stored.encoding.bits)  # lost bits do not come back
    count = compaction.num_vectors(stored.num_slots, bits=bits)
    if bits == stored.encoding.bits and count == stored.num_slots:
        return part
    slots, shares = stored.unpack().slots, None
    if count < stored.num_slots:
        shared = _share(part, slots, compaction.method, count=count, num_head=num_head)
        slots, shares = shared.vectors, shared.slot_vectors
    return StoredChunk(chunk=part.chunk, stored=with_vectors(stored, slots, shares, bits=bits))


def _share(
    part: StoredChunk, slots: Tensor, method: Method, *, count: int, num_head: int
) -> Shared:
    if method == "average":
        return average_neighbours(slots, count=count)
    if method == "merge":
        return merge_nearest(slots, count=count)
    if method == "prune-random":
        # Of the text alone, so that the same document becomes the same bytes everywhere.
        return prune_at_random(slots, count=count, seed=crc32(part.chunk.text.encode()))
    return prune_untelling(slots, count=count, words=slot_words(part, num_head=num_head))


def slot_words(part: StoredChunk, *, num_head: int) -> Sequence[str]:
    """What the token of each slot spells; empty for framing.

    Raises:
        InvalidInput: the chunk's slots are not its tokens in their frame.
    """
    offsets = part.stored.unpack().token_offsets.tolist()
    words = [part.chunk.text[start:end] for start, end in offsets]
    num_tail = part.stored.num_slots - num_head - len(words)
    if not 0 <= num_tail <= MAX_TAIL:
        raise InvalidInput(
            f"{part.stored.num_slots} slots of {len(words)} tokens are not one for each: "
            "this bundle's slots have no words to prune by"
        )
    return [*[""] * num_head, *words, *[""] * num_tail]
