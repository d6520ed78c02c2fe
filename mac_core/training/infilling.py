"""Questions that nobody wrote: a sentence of prose with a phrase taken out asks for that phrase.

Span infilling as a task of question answering, after Lewis et al. 2019 (arXiv 1906.04980): an
interrogative stands in the phrase's place and some of the other words are dropped, so that matching
words alone does not find the sentence. What is asked for is a name, a number, or what follows an
article; no tagger is needed, and no model writes anything.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bm25s.stopwords import STOPWORDS_EN_PLUS

from mac_core.training.corpora import Paragraph, QuestionAnswer, load_prose

QUESTIONS_PER_PASSAGE = 4
MIN_WORDS = 6  # of a sentence besides the phrase
MAX_WORDS_AROUND = 14  # of the sentence, kept on either side of the phrase
DROPPED = 0.15  # share of the other words
MAX_PHRASE_WORDS = 6

# Words that end what an article begins, so that "the firm that sells" asks for "firm" alone.
FUNCTION_WORDS = frozenset(STOPWORDS_EN_PLUS) | frozenset(
    ["also", "although", "could", "however", "may", "might", "must", "one", "since", "would"]
)
SENTENCE = re.compile(r"\S.*?[.!?]+(?=\s|$)", re.DOTALL)
WORD = re.compile(r"\S+")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'’-]+(?: (?:of |the |and |de )?[A-Z][\w'’-]+)*")
NUMBER = re.compile(r"(?<![\w.,])\$?\d[\d,]*(?:\.\d+)?%?(?: (?:percent|million|billion|trillion))?")
YEAR = re.compile(r"1\d{3}|20\d{2}")
AFTER_ARTICLE = re.compile(r"(?<=\b(?:the|The) )[a-z][\w-]*(?: [a-z][\w-]*){0,3}")


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a question asks for: characters of the passage, and the word that asks."""

    start: int
    end: int
    asked_by: str


def load_infilling(path: Path) -> list[Paragraph]:
    """Read prose as passages with questions about their own phrases; no others are kept."""
    return with_infilling(load_prose(path))


def with_infilling(passages: Sequence[Paragraph]) -> list[Paragraph]:
    """Ask for up to four phrases of each passage, each in a sentence of its own.

    A passage's questions depend on its text alone, not on the others nor on their order. Those
    without a phrase to ask for are left out.
    """
    asked = [
        replace(passage, questions=tuple(_questions(passage.text)), source="infilling")
        for passage in passages
    ]
    return [passage for passage in asked if passage.questions]


def _questions(text: str) -> Iterator[QuestionAnswer]:
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    sentences = [match.span() for match in SENTENCE.finditer(text)]
    asked = 0
    for place in rng.permutation(len(sentences)).tolist():
        start, end = sentences[place]
        phrases = list(_phrases(text, start, end))
        if not phrases or len(text[start:end].split()) < MIN_WORDS:
            continue
        phrase = phrases[int(rng.integers(len(phrases)))]
        question = _question(text, start, end, phrase, rng=rng)
        if question is None:
            continue
        yield QuestionAnswer(
            question=question,
            answers=(text[phrase.start : phrase.end],),
            answer_start=phrase.start,
        )
        asked += 1
        if asked == QUESTIONS_PER_PASSAGE:
            return


def _phrases(text: str, start: int, end: int) -> Iterator[Phrase]:
    """Names, numbers and what follows an article, in the sentence `text[start:end]`."""
    for match in NAME.finditer(text, start, end):
        if len(match[0].split()) <= MAX_PHRASE_WORDS:
            yield Phrase(match.start(), match.end(), "who or what")
    for match in NUMBER.finditer(text, start, end):
        asked_by = "which year" if YEAR.fullmatch(match[0]) else "how many"
        yield Phrase(match.start(), match.end(), asked_by)
    for match in AFTER_ARTICLE.finditer(text, start, end):
        length = _until_function_word(match[0])
        if length:
            yield Phrase(match.start(), match.start() + length, "what")


def _until_function_word(words: str) -> int:
    """Characters before the first word that carries no content, without the space."""
    length = 0
    for word in WORD.finditer(words):
        if word[0] in FUNCTION_WORDS:
            break
        length = word.end()
    return length


def _question(
    text: str, start: int, end: int, phrase: Phrase, *, rng: np.random.Generator
) -> str | None:
    """The sentence around the phrase as a question; None: too little is left, or it tells."""
    before = [word for word in text[start : phrase.start].split() if rng.random() >= DROPPED]
    after = [word for word in text[phrase.end : end].split() if rng.random() >= DROPPED]
    kept = before[-MAX_WORDS_AROUND:] + after[:MAX_WORDS_AROUND]
    rest = " ".join(kept)
    if len(kept) < MIN_WORDS or text[phrase.start : phrase.end].lower() in rest.lower():
        return None
    asking = [*before[-MAX_WORDS_AROUND:], phrase.asked_by, *after[:MAX_WORDS_AROUND]]
    return " ".join(asking).rstrip(" .!?,;:") + "?"
