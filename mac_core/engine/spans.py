"""Where an answer stands in a source: literal occurrences, case, and the snippet around them.

A decoded answer is lower case, without accents, and spaced by token ("twenty - one", "u. s.").
Both sides are therefore folded and cut into words and single punctuation marks, and the answer's
sequence is looked for in the text's. Knows no model and no bank.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Ideographs stand alone, as WordPiece cuts them; then words; then one mark at a time.
_UNIT = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]|_")
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]?[^\W_a-z])|\n+")
_SAME_MARK = str.maketrans("‘’‛“”„–—−‐‑", "'''\"\"\"-----")

MAX_SNIPPET_CHARS = 320
DEFAULT_SNIPPET_CHARS = 200


@dataclass(frozen=True, slots=True)
class _Unit:
    """One folded word or mark and its half-open range in the original text."""

    folded: str
    start: int
    end: int


def find_answer(answer: str, text: str) -> tuple[int, int] | None:
    """First occurrence of `answer` in `text` as whole words; half-open, in characters.

    Case, accents, typographic quotes and dashes, and spacing around punctuation don't count.
    Punctuation at the ends of `answer` counts only if the text has it too.
    """
    wanted = [unit.folded for unit in _units(answer)]
    found = _find_units(wanted, text)
    return found or _find_units(_strip_marks(wanted), text)


def snippet(text: str, span: tuple[int, int] | None) -> str:
    """The sentence around `span`, or the beginning of `text`; one line, a bounded length."""
    if span is None:
        return _clip(text, 0, len(text), DEFAULT_SNIPPET_CHARS)
    start, end = _sentence_bounds(text, *span)
    if end - start > MAX_SNIPPET_CHARS:
        margin = max(0, MAX_SNIPPET_CHARS - (span[1] - span[0])) // 2
        start, end = max(start, span[0] - margin), min(end, span[1] + margin)
    return _clip(text, start, end, MAX_SNIPPET_CHARS)


def _find_units(wanted: Sequence[str], text: str) -> tuple[int, int] | None:
    if not wanted:
        return None
    units = _units(text)
    for first in range(len(units) - len(wanted) + 1):
        window = units[first : first + len(wanted)]
        if all(unit.folded == word for unit, word in zip(window, wanted, strict=True)):
            return window[0].start, _end_with_accents(text, window[-1].end)
    return None


def _strip_marks(wanted: Sequence[str]) -> Sequence[str]:
    """`wanted` without punctuation at either end."""
    words = [i for i, unit in enumerate(wanted) if unit[0].isalnum()]
    return wanted[words[0] : words[-1] + 1] if words else ()


def _units(text: str) -> list[_Unit]:
    folded: list[str] = []
    origins: list[int] = []  # per folded character: its character in `text`
    for origin, character in enumerate(text):
        plain = _fold(character)
        folded.append(plain)
        origins.extend([origin] * len(plain))
    return [
        _Unit(match.group(), origins[match.start()], origins[match.end() - 1] + 1)
        for match in _UNIT.finditer("".join(folded))
    ]


def _fold(character: str) -> str:
    """Lower case without accents: what an uncased WordPiece normaliser makes of it."""
    if character.isascii():
        return character.lower()
    decomposed = unicodedata.normalize("NFD", character.translate(_SAME_MARK).lower())
    return "".join(part for part in decomposed if unicodedata.category(part) != "Mn")


def _end_with_accents(text: str, end: int) -> int:
    """`end` moved behind combining marks that belong to the last letter."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return end


def _sentence_bounds(text: str, start: int, end: int) -> tuple[int, int]:
    """The sentence, or sentences, that hold `[start, end)`."""
    breaks = [match.end() for match in _SENTENCE_END.finditer(text)]
    first = max((position for position in breaks if position <= start), default=0)
    last = min((position for position in breaks if position >= end), default=len(text))
    return first, last


def _clip(text: str, start: int, end: int, max_chars: int) -> str:
    """`text[start:end]` on one line, cut at a word if it is longer than `max_chars`."""
    line = " ".join(text[start:end].split())
    if len(line) <= max_chars:
        return line
    return line[:max_chars].rsplit(" ", 1)[0] + "…"
