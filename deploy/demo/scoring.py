"""When the demo counts an answer as correct; knows nothing of servers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

MAX_WORDS = 8
RULE = (
    "✓ An answer is correct when it is an accepted answer, or holds one as whole words and is at "
    f"most {MAX_WORDS} words long; case, punctuation and a, an, the do not count. The accepted "
    "answers are in deploy/demo/questions.jsonl. A source is ✓ when it is the document in which "
    "the answer stands; its number is its share of the attention."
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def is_correct(answer: str | None, accepted: Sequence[str]) -> bool:
    """Apply `RULE`; no answer is never correct."""
    words = normalize(answer or "")
    return any(
        words == one or (len(words) <= MAX_WORDS and holds(words, one))
        for one in map(normalize, accepted)
    )


def normalize(text: str) -> list[str]:
    """The words of a text after SQuAD's normalisation (arXiv 1606.05250)."""
    bare = text.lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()


def holds(words: Sequence[str], part: Sequence[str]) -> bool:
    """Does `part` stand in `words`, word for word and in one piece?"""
    last = len(words) - len(part)
    return bool(part) and any(list(words[i : i + len(part)]) == list(part) for i in range(last + 1))
