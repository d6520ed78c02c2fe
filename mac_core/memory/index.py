"""Rebuildable views for choosing documents: BM25 over SQLite FTS5, exact cosines in torch.

Neither keeps anything that is not in the bank; both forget a removed row without a trace.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Container, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_QUERY_TERMS = 64
MAX_TERM_CHARS = 64  # a longer word is not one; keeps the match expression bounded
TIES = 32  # rows beyond the limit that are ranked at first, to see where its ties end
WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    WORD.findall(
        """a about above after again against all am an and any are as at be because been before
        being below between both but by can could did do does doing down during each few for from
        further had has have having he her here hers him his how i if in into is it its itself
        just me more most my no nor not now of off on once only or other our ours out over own
        same she should so some such than that the their theirs them then there these they this
        those through to too under until up us very was we were what when where which while who
        whom whose why will with would you your yours"""
    )
)


def query_terms(question: str) -> list[str]:
    """The distinct words that BM25 looks for: stop words dropped unless there is nothing else."""
    words = WORD.findall(unicodedata.normalize("NFC", question).lower())
    distinct = list(dict.fromkeys(word[:MAX_TERM_CHARS] for word in words))
    telling = [word for word in distinct if word not in STOP_WORDS]
    return (telling or distinct)[:MAX_QUERY_TERMS]


def match_expression(question: str) -> str:
    """What FTS5 is asked for: rows with any of the question's words; empty when it has none."""
    return " OR ".join(f'"{term}"' for term in query_terms(question))


class Bm25Index:
    """BM25 (FTS5's k1 1.2, b 0.75) with Porter stemming over rows of text.

    FTS5 keeps row count, token totals and document frequencies as exact integers, so that after
    `remove` every score equals that of an index which never held the row. One thread at a time.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False
        )
        self._connection.execute(
            "CREATE VIRTUAL TABLE chunks USING fts5(text, tokenize='porter unicode61')"
        )

    def add(self, rowid: int, text: str) -> None:
        """Add a row whose id is not there yet; what is not valid Unicode is left unreadable."""
        readable = unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode()
        self._connection.execute(
            "INSERT INTO chunks (rowid, text) VALUES (?, ?)", (rowid, readable)
        )

    def remove(self, rowid: int) -> None:
        self._connection.execute("DELETE FROM chunks WHERE rowid = ?", (rowid,))

    def best(self, question: str, *, limit: int) -> list[tuple[int, float]]:
        """The `limit` best rows and whatever ties with the last of them, as `search` orders them.

        Ranked inside SQLite, so that a frequent word does not bring its every row to Python.
        """
        fetched = limit + TIES
        while True:
            hits = self._ranked(question, fetched)
            # Ties are those of float32, in which scores are compared later.
            singles = np.array([score for _, score in hits], dtype=np.float32)
            if len(hits) < fetched or singles[-1] < singles[limit - 1]:
                return hits[: int((singles >= singles[limit - 1 : limit].max(initial=0.0)).sum())]
            fetched *= 4

    def scores(self, question: str, rows: Sequence[int]) -> dict[int, float]:
        """Scores of those of `rows` that share a word with `question`, as `search` gives them."""
        expression = match_expression(question)
        if not expression or not rows:
            return {}
        marks = ", ".join("?" * len(rows))
        # The plus keeps FTS5 from looking each row up alone, which counts every word's rows anew.
        found = self._connection.execute(
            f"SELECT rowid, -bm25(chunks) FROM chunks WHERE chunks MATCH ? AND +rowid IN ({marks})",
            (expression, *rows),
        )
        return dict(found)

    def _ranked(self, question: str, fetched: int) -> list[tuple[int, float]]:
        expression = match_expression(question)
        if not expression:
            return []
        return self._connection.execute(
            "SELECT rowid, -bm25(chunks) AS score FROM chunks WHERE chunks MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?",
            (expression, fetched),
        ).fetchall()

    def search(
        self, question: str, *, limit: int | None = None, allowed: Container[int] | None = None
    ) -> list[tuple[int, float]]:
        """Rows that share a word with `question`, with scores above zero, best first.

        Ties stand in the order of their row ids. Any text is a valid question.

        Args:
            limit: how many to return; None: all.
            allowed: rows that may be returned; None: all.
        """
        expression = match_expression(question)
        if not expression:
            return []
        found = self._connection.execute(
            "SELECT rowid, -bm25(chunks) FROM chunks WHERE chunks MATCH ?", (expression,)
        )
        hits = [hit for hit in found if allowed is None or hit[0] in allowed]
        hits.sort(key=lambda hit: (-hit[1], hit[0]))
        return hits[:limit]


def best_rows(scores: Tensor, eligible: Tensor, *, limit: int, slack: float = 0.0) -> Tensor:
    """The `limit` best eligible rows and whatever ties with the last of them, ascending.

    A pure function of the scores: no order among equals decides who is in.

    Args:
        scores: `(bank_size,)`.
        eligible: bool `(bank_size,)`.
        slack: how far below the last one still counts as a tie.
    """
    possible = int(eligible.sum())
    if possible == 0:
        return torch.empty(0, dtype=torch.int64)
    masked = torch.where(eligible, scores, -torch.inf)
    threshold = masked.topk(min(limit, possible)).values[-1] - slack
    return (eligible & (masked >= threshold)).nonzero()[:, 0]


def exact_cosines(keys: Tensor, query: Tensor) -> Tensor:
    """Cosines of unit keys `(rows, d_key)` and one unit query `(d_key,)`: float32 `(rows,)`.

    Summed in float64 row by row, so that a row's result depends on neither its neighbours nor the
    shape of a matrix product.
    """
    return (keys.double() * query.double()).sum(dim=-1).float()
