"""Training batches: paragraphs beside paragraphs easily confused with them, and their questions.

Corpora, encoding and mining are re-exported, so that a trainer imports its data from here.
Everything is without special tokens: adding them is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mac_core.training.corpora import (
    Paragraph,
    QuestionAnswer,
    load_fairytaleqa,
    load_prose,
    load_squad,
    split_by_article,
)
from mac_core.training.encoding import (
    EncodedParagraphs,
    IntArray,
    encode_paragraphs,
    mine_neighbours,
)

__all__ = [
    "Batch",
    "EncodedParagraphs",
    "Paragraph",
    "QuestionAnswer",
    "encode_paragraphs",
    "load_fairytaleqa",
    "load_prose",
    "load_squad",
    "mine_neighbours",
    "sample_batch",
    "split_by_article",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded tensors of one training step; ids are 0 where the mask is False.

    A paragraph and the neighbour drawn for it stand next to each other, the neighbour second.
    """

    document_ids: Tensor  # (documents, tokens), int64
    document_mask: Tensor  # (documents, tokens), bool
    question_ids: Tensor  # (questions, question_tokens), int64
    question_mask: Tensor  # (questions, question_tokens), bool
    answer_ids: Tensor  # (questions, answer_tokens), int64
    answer_mask: Tensor  # (questions, answer_tokens), bool
    question_document: Tensor  # (questions,), int64: its paragraph's row in `document_ids`
    copy_mask: Tensor  # (questions, answer_tokens, tokens), bool: answer token j stands here
    paragraph_index: Tensor  # (documents,), int64: row in the corpus
    question_index: Tensor  # (questions,), int64: row in the corpus


def sample_batch(
    encoded: EncodedParagraphs,
    neighbours: IntArray | None,
    *,
    rng: np.random.Generator,
    num_paragraphs: int,
    questions_per_paragraph: int,
    max_tokens: int = 250,
    max_answer_tokens: int = 24,
    max_question_tokens: int = 64,
) -> Batch:
    """Draw paragraphs without repetition, half of them neighbours of the others.

    A paragraph over `max_tokens` is cropped to a random window that holds the annotated answers
    of its drawn questions, when one window can. Questions are drawn with replacement only where a
    paragraph has fewer than `questions_per_paragraph`.

    Args:
        neighbours: `(paragraphs, any)` from `mine_neighbours`; None: all paragraphs at random.

    Raises:
        ValueError: fewer than `num_paragraphs` paragraphs have questions.
    """
    chosen = _draw_paragraphs(encoded, neighbours, rng=rng, count=num_paragraphs)
    questions = np.concatenate(
        [_draw_questions(encoded, p, rng=rng, count=questions_per_paragraph) for p in chosen]
    )  # (questions,)
    by_paragraph = questions.reshape(len(chosen), questions_per_paragraph)
    windows = [
        _crop(encoded, p, by_paragraph[row], rng=rng, max_tokens=max_tokens)
        for row, p in enumerate(chosen)
    ]
    documents = [
        encoded.document_ids[p][start:end] for p, (start, end) in zip(chosen, windows, strict=True)
    ]
    document_ids, document_mask = _pad(documents)
    question_ids, question_mask = _pad(
        [encoded.question_ids[q][:max_question_tokens] for q in questions]
    )
    answer_ids, answer_mask = _pad([encoded.answer_ids[q][:max_answer_tokens] for q in questions])
    question_document = np.repeat(np.arange(len(chosen)), questions_per_paragraph)
    copy_mask = _copy_mask(
        [encoded.spans[q] for q in questions],
        [windows[row] for row in question_document],
        answer_tokens=answer_ids.shape[1],
        tokens=document_ids.shape[1],
    )
    return Batch(
        document_ids=document_ids,
        document_mask=document_mask,
        question_ids=question_ids,
        question_mask=question_mask,
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        question_document=torch.from_numpy(question_document),
        copy_mask=copy_mask,
        paragraph_index=torch.tensor(chosen, dtype=torch.int64),
        question_index=torch.from_numpy(questions),
    )


def _draw_paragraphs(
    encoded: EncodedParagraphs,
    neighbours: IntArray | None,
    *,
    rng: np.random.Generator,
    count: int,
) -> list[int]:
    """Draw `count` different paragraphs that have questions, each pair one of neighbours."""
    num_questions = np.diff(encoded.question_starts)  # (paragraphs,)
    eligible = np.flatnonzero(num_questions > 0)
    if len(eligible) < count:
        raise ValueError(f"{len(eligible)} paragraphs have questions, asked for {count}")
    # `count` are enough: each one is taken, or passed over because it is there as a neighbour.
    spare = iter(rng.choice(eligible, size=count, replace=False).tolist())
    chosen: dict[int, None] = {}  # ordered
    while len(chosen) < count:
        seed = next(paragraph for paragraph in spare if paragraph not in chosen)
        chosen[seed] = None
        if neighbours is not None and len(chosen) < count:
            row = neighbours[seed]
            row = row[row >= 0]
            free = [p for p in row[num_questions[row] > 0].tolist() if p not in chosen]
            if free:
                chosen[free[rng.integers(len(free))]] = None
    return list(chosen)


def _draw_questions(
    encoded: EncodedParagraphs, paragraph: int, *, rng: np.random.Generator, count: int
) -> NDArray[np.int64]:
    first, end = encoded.question_starts[paragraph : paragraph + 2]
    return rng.choice(np.arange(first, end), size=count, replace=end - first < count)


def _crop(
    encoded: EncodedParagraphs,
    paragraph: int,
    questions: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    max_tokens: int,
) -> tuple[int, int]:
    """Token range of the paragraph that is kept, at most `max_tokens` long."""
    length = len(encoded.document_ids[paragraph])
    if length <= max_tokens:
        return 0, length
    annotated = [encoded.spans[q][0].tolist() for q in questions if len(encoded.spans[q])]
    annotated = [(start, start + size) for start, size in annotated]
    first, last = min(annotated, default=(0, 0))[0], max((end for _, end in annotated), default=0)
    if last - first > max_tokens:  # no window holds all: one answer, at random
        first, last = annotated[rng.integers(len(annotated))]
    if not annotated or last - first > max_tokens:
        low, high = 0, length - max_tokens
    else:
        low, high = max(0, last - max_tokens), min(first, length - max_tokens)
    start = int(rng.integers(low, high + 1))
    return start, start + max_tokens


def _pad(rows: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """Ids `(rows, longest)`, int64, padded with 0, and their mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(max(1, lengths.max())) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _copy_mask(
    spans: Sequence[IntArray],
    windows: Sequence[tuple[int, int]],
    *,
    answer_tokens: int,
    tokens: int,
) -> Tensor:
    """Mark where each answer token stands: `(questions, answer_tokens, tokens)`, bool.

    Only occurrences that lie in the window as a whole are marked.
    """
    mask = np.zeros((len(spans), answer_tokens, tokens), dtype=np.bool_)
    steps = np.arange(answer_tokens)
    for row, (occurrences, (start, end)) in enumerate(zip(spans, windows, strict=True)):
        for position, size in occurrences.tolist():
            if start <= position and position + size <= end:
                kept = steps[:size]
                mask[row, kept, position - start + kept] = True
    return torch.from_numpy(mask)
