"""Paragraphs as token ids, where each answer stands in them, and which paragraphs look alike.

Knows no batch, no special tokens and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mac_core.training.corpora import Paragraph

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Rows of different length in one array: row i is `values[starts[i]:starts[i + 1]]`."""

    values: IntArray  # (total,) or (total, columns)
    starts: NDArray[np.int64]  # (rows + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> IntArray:
        return self.values[self.starts[row] : self.starts[row + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedParagraphs:
    """A corpus as token ids, without special tokens; questions in the order of their paragraphs."""

    paragraphs: tuple[Paragraph, ...]
    document_ids: Ragged  # by paragraph
    document_offsets: Ragged  # by paragraph: (tokens, 2), characters into its text
    question_ids: Ragged  # by question
    answer_ids: Ragged  # by question: tokens of answers[0]; empty: no answer
    spans: (
        Ragged  # by question: (occurrences, 2), start token and number of tokens, annotated first
    )
    question_paragraph: IntArray  # (questions,)
    question_starts: NDArray[np.int64]  # (paragraphs + 1,): a paragraph's range of questions

    @property
    def num_with_questions(self) -> int:
        """Paragraphs that something is asked about: no more can be drawn at once."""
        return int((np.diff(self.question_starts) > 0).sum())


def encode_paragraphs(paragraphs: Sequence[Paragraph], tokenizer: Tokenizer) -> EncodedParagraphs:
    """Tokenise a corpus and find every occurrence of each first answer in its paragraph.

    Raises:
        ValueError: the tokenizer truncates or pads, which would lose or invent tokens.
    """
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise ValueError("tokenizer truncates or pads; call no_truncation() and no_padding() first")
    questions = [item for paragraph in paragraphs for item in paragraph.questions]
    counts = [len(paragraph.questions) for paragraph in paragraphs]
    document_ids, document_offsets = _encode([p.text for p in paragraphs], tokenizer)
    answers = [item.answers[0] if item.answers else "" for item in questions]
    answer_ids, _ = _encode(answers, tokenizer)
    question_paragraph = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    spans = [
        _find_spans(
            answer_ids[i],
            document_ids[question_paragraph[i]],
            document_offsets[question_paragraph[i]],
            answer_start=item.answer_start,
        )
        for i, item in enumerate(questions)
    ]
    return EncodedParagraphs(
        paragraphs=tuple(paragraphs),
        document_ids=document_ids,
        document_offsets=document_offsets,
        question_ids=_encode([item.question for item in questions], tokenizer)[0],
        answer_ids=answer_ids,
        spans=_ragged(spans, shape=(0, 2)),
        question_paragraph=question_paragraph,
        question_starts=_starts(counts),
    )


def mine_neighbours(encoded: EncodedParagraphs, *, num_neighbours: int = 16) -> IntArray:
    """Find for each paragraph the others that its questions would most easily be confused with.

    The query is the set of words of the paragraph's questions (of its text, if it has none),
    scored by BM25 with stop words removed; ties go to the lower index.

    Returns:
        `(paragraphs, num_neighbours)`, best first, -1 where there are no more paragraphs.
    """
    texts = [paragraph.text for paragraph in encoded.paragraphs]
    queries = [
        " ".join(item.question for item in paragraph.questions) or paragraph.text
        for paragraph in encoded.paragraphs
    ]
    tokenized = bm25s.tokenize(texts + queries, stopwords="en", show_progress=False)
    document_words, query_words = tokenized.ids[: len(texts)], tokenized.ids[len(texts) :]
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index((document_words, tokenized.vocab), show_progress=False)
    neighbours = np.full((len(texts), num_neighbours), -1, dtype=np.int32)
    for row, words in enumerate(query_words):
        scores = index.get_scores_from_ids(sorted(set(words)))
        scores[row] = -np.inf
        best = _best(scores, min(num_neighbours, len(texts) - 1))
        neighbours[row, : len(best)] = best
    return neighbours


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest scores, best first, ties to the lower index."""
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    floor = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= floor)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _encode(texts: list[str], tokenizer: Tokenizer) -> tuple[Ragged, Ragged]:
    """Token ids and character offsets of each text."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    offsets = [
        np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2) for encoding in encodings
    ]
    return _ragged(ids, shape=(0,)), _ragged(offsets, shape=(0, 2))


def _find_spans(
    answer: IntArray, document: IntArray, offsets: IntArray, *, answer_start: int | None
) -> IntArray:
    """All `(start token, number of tokens)` where `answer` stands, the annotated one first."""
    length = len(answer)
    if length == 0 or length > len(document):
        return np.empty((0, 2), dtype=np.int32)
    starts = np.flatnonzero(document[: len(document) - length + 1] == answer[0])
    for i in range(1, length):
        starts = starts[document[starts + i] == answer[i]]
    if answer_start is not None:
        covers = (offsets[starts, 0] <= answer_start) & (answer_start < offsets[starts, 1])
        starts = starts[np.argsort(~covers, kind="stable")]
    return np.stack([starts, np.full_like(starts, length)], axis=1).astype(np.int32)


def _starts(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _ragged(rows: Sequence[IntArray], *, shape: tuple[int, ...]) -> Ragged:
    values = np.concatenate(rows) if rows else np.empty(shape, dtype=np.int32)
    return Ragged(values=values, starts=_starts([len(row) for row in rows]))
