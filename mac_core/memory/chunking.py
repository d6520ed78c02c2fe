"""Long documents become chunks of tokens with overlap; no token and no character is lost.

Knows tokens only through `encode_with_offsets`: any tokenizer with that method will do.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mac_core.errors import InvalidInput

SENTENCE_ENDS = ".!?"
CLOSERS = "\"')]}\u201d\u2019"  # may stand between a sentence's last mark and the space after it
MARGIN = 16  # characters looked at on either side of a boundary


class OffsetTokenizer(Protocol):
    """What chunking needs of a tokenizer."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the half-open character range of each, without special tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a document that fits the amortization network."""

    index: int  # place among the document's chunks
    text: str
    start: int  # characters into the document's text, half-open
    end: int
    num_tokens: int  # of `text` on its own


def chunk_text(
    text: str, tokenizer: OffsetTokenizer, *, max_tokens: int, overlap_tokens: int
) -> list[Chunk]:
    """Cut `text` into chunks of at most `max_tokens`, neighbours sharing about `overlap_tokens`.

    A chunk ends after a sentence when one ends in the window's last quarter, else after a word
    when one ends there, else between two tokens. The chunks' ranges cover every character.

    Raises:
        InvalidInput: the text has no token.
        ValueError: `overlap_tokens` is not in [0, max_tokens).
    """
    if not 0 <= overlap_tokens < max_tokens:
        raise ValueError(f"overlap_tokens={overlap_tokens} is not in [0, {max_tokens})")
    _, offsets = tokenizer.encode_with_offsets(text)
    if not offsets:
        raise InvalidInput(f"the text of {len(text)} characters has no token: nothing to learn")
    if len(offsets) <= max_tokens:
        return [Chunk(index=0, text=text, start=0, end=len(text), num_tokens=len(offsets))]
    starts = [start for start, _ in offsets]
    chunks: list[Chunk] = []
    first = 0
    for index in range(len(starts)):  # each begins at a later token: no more chunks than tokens
        chunk, last = _fitting_chunk(
            text, tokenizer, starts, index=index, first=first, max_tokens=max_tokens
        )
        chunks.append(chunk)
        if last == len(starts):
            return chunks
        first = max(first + 1, _overlap_start(text, starts, last - overlap_tokens, last))
    raise RuntimeError(f"{len(chunks)} chunks did not come to the end of {len(starts)} tokens")


def _fitting_chunk(
    text: str,
    tokenizer: OffsetTokenizer,
    starts: Sequence[int],
    *,
    index: int,
    first: int,
    max_tokens: int,
) -> tuple[Chunk, int]:
    """The chunk that begins at token `first`, and the first token after it.

    A part tokenised on its own can have more tokens than it had inside the whole (its first word
    may be half a word), so the count that decides is the chunk's own.
    """
    last = min(first + max_tokens, len(starts))
    while True:
        if last < len(starts):
            last = _best_break(text, starts, first, last, max_tokens)
        start = 0 if first == 0 else starts[first]
        # Tokens of one character share its start: the chunk then takes the whole character.
        end = len(text) if last == len(starts) else max(starts[last], start + 1)
        part = text[start:end]
        num_tokens = len(tokenizer.encode_with_offsets(part)[0])
        if num_tokens <= max_tokens or last == first + 1:
            return Chunk(index=index, text=part, start=start, end=end, num_tokens=num_tokens), last
        last = max(first + 1, last - (num_tokens - max_tokens))


def _best_break(text: str, starts: Sequence[int], first: int, last: int, max_tokens: int) -> int:
    """The token in the window's last quarter before which to cut; `last` when none is better."""
    earliest = max(first + 1, last - max_tokens // 4)
    candidates = range(last, earliest - 1, -1)
    for ends in (_ends_sentence, _ends_word):
        for token in candidates:
            if ends(text, starts[token]):
                return token
    return last


def _overlap_start(text: str, starts: Sequence[int], earliest: int, last: int) -> int:
    """The first token in [earliest, last] that begins a word; `earliest` when none does."""
    for token in range(earliest, last + 1):
        if _ends_word(text, starts[token]):
            return token
    # Not in the middle of a character whose tokens share one start.
    return bisect.bisect_left(starts, starts[earliest])


def _gap(text: str, position: int) -> tuple[str, str]:
    """The characters before the white space around `position`, and that white space."""
    before = text[max(0, position - MARGIN) : position]
    after = text[position : position + MARGIN]
    head = before.rstrip()
    return head, before[len(head) :] + after[: len(after) - len(after.lstrip())]


def _ends_word(text: str, position: int) -> bool:
    return bool(_gap(text, position)[1])


def _ends_sentence(text: str, position: int) -> bool:
    head, space = _gap(text, position)
    return "\n" in space or (bool(space) and head.rstrip(CLOSERS).endswith(tuple(SENTENCE_ENDS)))
