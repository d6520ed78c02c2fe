"""Read the question-answering corpora and the prose; knows files and characters, no tokens.

Layouts: SQuAD (arXiv 1606.05250, 1806.03822), SQuADShifts (arXiv 2004.14444), FairytaleQA
(arXiv 2203.13947), and prose as one `{text, source}` per line.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnswer:
    """One question with its reference answers; no answers: the paragraph does not hold one."""

    question: str
    answers: tuple[str, ...]
    answer_start: int | None  # character of answers[0] in the paragraph; None: not literally there


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """One passage and the questions asked about it."""

    text: str
    article: str
    source: str
    questions: tuple[QuestionAnswer, ...] = ()


def load_squad(path: Path, *, keep_impossible: bool = False) -> list[Paragraph]:
    """Read a file in SQuAD's layout (1.1, 2.0, SQuADShifts), plain or xz.

    Args:
        keep_impossible: keep SQuAD 2.0's unanswerable questions, with `answers=()`.
    """
    articles = json.loads(_read_text(path))["data"]
    source = path.name.partition(".json")[0]
    return [
        Paragraph(
            text=entry["context"],
            article=article["title"],
            source=source,
            questions=tuple(_squad_questions(entry, keep_impossible=keep_impossible)),
        )
        for article in articles
        for entry in article["paragraphs"]
    ]


def load_fairytaleqa(path: Path) -> list[Paragraph]:
    """Read FairytaleQA: a story's sections are the paragraphs, the story is the article."""
    sections: dict[tuple[str, str], list[QuestionAnswer]] = {}
    for row in _json_lines(path):
        text = row["context"]
        answers = tuple(dict.fromkeys(row["answers"]))
        found = QuestionAnswer(
            question=row["question"],
            answers=answers,
            answer_start=_find(answers[0], text) if answers else None,
        )
        sections.setdefault((row["title"], text), []).append(found)
    return [
        Paragraph(text=text, article=title, source="fairytaleqa", questions=tuple(questions))
        for (title, text), questions in sections.items()
    ]


def load_prose(path: Path, *, min_chars: int = 400, max_chars: int = 1200) -> list[Paragraph]:
    """Read prose as passages without questions.

    Lines are joined until a passage has `min_chars`; a passage over `max_chars` is cut between
    sentences. A rest shorter than `min_chars` ends its text as a passage of its own.
    """
    return [
        Paragraph(text=passage, article=row["source"], source="prose")
        for row in _json_lines(path)
        for passage in _passages(row["text"], min_chars=min_chars, max_chars=max_chars)
    ]


def split_by_article(
    paragraphs: Sequence[Paragraph], *, held_out_fraction: float, seed: int
) -> tuple[list[Paragraph], list[Paragraph]]:
    """Split into (train, held out); all paragraphs of an article fall on the same side.

    Args:
        held_out_fraction: share of the articles (not of the paragraphs), in [0, 1).
    """
    if not 0.0 <= held_out_fraction < 1.0:
        raise ValueError(f"held_out_fraction={held_out_fraction} is not in [0, 1)")
    articles = sorted({paragraph.article for paragraph in paragraphs})
    order = np.random.default_rng(seed).permutation(len(articles))
    held_out = {articles[i] for i in order[: round(held_out_fraction * len(articles))]}
    return (
        [paragraph for paragraph in paragraphs if paragraph.article not in held_out],
        [paragraph for paragraph in paragraphs if paragraph.article in held_out],
    )


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    return (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    # Not str.splitlines: a JSON string may hold other line separators unescaped.
    return (json.loads(line) for line in _read_text(path).split("\n") if line.strip())


def _squad_questions(entry: dict[str, Any], *, keep_impossible: bool) -> Iterator[QuestionAnswer]:
    for item in entry["qas"]:
        answers = () if item.get("is_impossible", False) else item["answers"]
        if not answers and not keep_impossible:
            continue
        yield QuestionAnswer(
            question=item["question"],
            answers=tuple(dict.fromkeys(answer["text"] for answer in answers)),
            answer_start=answers[0]["answer_start"] if answers else None,
        )


def _find(answer: str, text: str) -> int | None:
    # Not str.lower().find: lower-casing may change the length, and offsets with it.
    match = re.search(re.escape(answer), text, re.IGNORECASE)
    return match.start() if match and answer else None


def _passages(text: str, *, min_chars: int, max_chars: int) -> Iterator[str]:
    pieces: list[str] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        sentences = re.split(r"(?<=[.!?])\s+", line) if len(line) > max_chars else [line]
        for sentence in sentences:
            if pieces and sum(map(len, pieces)) + len(sentence) > max_chars:
                yield " ".join(pieces)
                pieces = []
            pieces.append(sentence)
        if sum(map(len, pieces)) >= min_chars:
            yield " ".join(pieces)
            pieces = []
    if pieces:
        yield " ".join(pieces)
