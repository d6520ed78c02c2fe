"""Learning without a server: the same cutting, amortizing and quantising, outside the queues.

For evaluation, calibration and re-indexing; nothing here is durable or visible by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mac_core.config import DEFAULT_BITS, ModulationBits
from mac_core.engine.ports import AnsweringModel
from mac_core.memory.chunking import Chunk, chunk_text
from mac_core.memory.records import StoredChunk, pack

Advance = Callable[[int], None]


def cut_document(model: AnsweringModel, text: str) -> list[Chunk]:
    """Chunks that fit the amortization network, its framing counted.

    Raises:
        InvalidInput: the text has no token.
    """
    config = model.config.amortization
    return chunk_text(
        text,
        model.tokenizer,
        max_tokens=config.max_tokens - len(model.layout.document([])),
        overlap_tokens=config.chunk_overlap_tokens,
    )


def amortize_chunks(
    model: AnsweringModel,
    chunks: Sequence[Chunk],
    *,
    batch_size: int,
    bits: ModulationBits = DEFAULT_BITS,
    advance: Advance = lambda amount: None,
) -> list[StoredChunk]:
    """Modulations of the chunks, in their order.

    Args:
        batch_size: chunks in one forward pass; chunks of like length go together.
        bits: of each stored value of a modulation.
        advance: told how many more chunks are done.
    """
    stored: dict[int, StoredChunk] = {}
    order = sorted(range(len(chunks)), key=lambda place: chunks[place].num_tokens)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        modulations = model.amortize([chunks[place].text for place in places])
        for place, modulation in zip(places, modulations, strict=True):
            stored[place] = StoredChunk(chunk=chunks[place], stored=pack(modulation, bits=bits))
        advance(len(places))
    return [stored[place] for place in range(len(chunks))]
