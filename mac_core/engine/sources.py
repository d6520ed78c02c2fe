"""What an answer rests on: documents by mass, with snippets and spans; and how they spell it."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from mac_core.engine.spans import find_answer, snippet
from mac_core.memory.bank import BankEntry, Selected
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.types import Source, Span

MAX_SOURCES = 32  # a question over the whole bank would list all of it


def sources_of(
    request: AnswerRequest, selected: Sequence[Selected], generated: Generated
) -> tuple[str, tuple[Source, ...]]:
    """As `find_sources`, for what the model made of a request; `selected` is what it came from."""
    used = selected[: len(request.modulations) or len(request.texts)]
    masses = generated.document_mass or [exp(chosen.log_prior) for chosen in used]
    return find_sources(generated.text, [chosen.entry for chosen in used], masses)


def find_sources(
    answer: str, entries: Sequence[BankEntry], masses: Sequence[float]
) -> tuple[str, tuple[Source, ...]]:
    """The answer as the best source that holds it spells it, and the sources, best first.

    A document's score is the mass of its chunks together. Its chunk is the one with the most mass
    among those that hold the answer, or among all when none does.

    Args:
        masses: by entry; their sum is at most 1.
    """
    chunks_of: dict[str, list[tuple[BankEntry, float]]] = {}
    for entry, mass in zip(entries, masses, strict=True):
        chunks_of.setdefault(entry.document_id, []).append((entry, mass))
    ranked = sorted(chunks_of.values(), key=_total_mass, reverse=True)[:MAX_SOURCES]
    shown = [_best_chunk(answer, chunks) for chunks in ranked]
    sources = tuple(
        _source(entry, found, score=_total_mass(chunks))
        for (entry, found), chunks in zip(shown, ranked, strict=True)
    )
    spelt = (entry.text[found[0] : found[1]] for entry, found in shown if found is not None)
    return " ".join(next(spelt, answer).split()), sources


def _total_mass(chunks: Sequence[tuple[BankEntry, float]]) -> float:
    return sum(mass for _, mass in chunks)


def _best_chunk(
    answer: str, chunks: Sequence[tuple[BankEntry, float]]
) -> tuple[BankEntry, tuple[int, int] | None]:
    """The chunk to show, and where the answer stands in it."""
    ranked = sorted(chunks, key=lambda chunk: chunk[1], reverse=True)
    for entry, _ in ranked:
        found = find_answer(answer, entry.text)
        if found is not None:
            return entry, found
    return ranked[0][0], None


def _source(entry: BankEntry, found: tuple[int, int] | None, *, score: float) -> Source:
    span = None
    if found is not None:
        span = Span(start=entry.start + found[0], end=entry.start + found[1])
    return Source(
        id=entry.document_id,
        chunk=entry.chunk,
        score=min(1.0, max(0.0, score)),
        title=entry.title,
        snippet=snippet(entry.text, found),
        span=span,
    )
