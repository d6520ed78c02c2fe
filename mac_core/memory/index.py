"""Rebuildable views for choosing documents: BM25 over SQLite FTS5, exact dense search in torch.

Neither keeps anything that is not in the bank; both forget a removed row without a trace.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Container

import torch
from torch import Tensor

MAX_QUERY_TERMS = 64
MAX_TERM_CHARS = 64  # a longer word is not one; keeps the match expression bounded
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

    def search(
        self, question: str, *, limit: int | None = None, allowed: Container[int] | None = None
    ) -> list[tuple[int, float]]:
        """Rows that share a word with `question`, with scores above zero, best first.

        Ties stand in the order of their row ids. Any text is a valid question.

        Args:
            limit: how many to return; None: all.
            allowed: rows that may be returned; None: all.
        """
        terms = query_terms(question)
        if not terms:
            return []
        expression = " OR ".join(f'"{term}"' for term in terms)
        found = self._connection.execute(
            "SELECT rowid, -bm25(chunks) FROM chunks WHERE chunks MATCH ?", (expression,)
        )
        hits = [hit for hit in found if allowed is None or hit[0] in allowed]
        hits.sort(key=lambda hit: (-hit[1], hit[0]))
        return hits[:limit]


class GrowingTensor:
    """Rows appended into spare capacity; each `rows` is a view whose content never changes.

    Appending costs amortised the new rows only; keeping a part copies it to a fresh buffer.
    """

    def __init__(self, empty: Tensor) -> None:
        self._buffer = empty
        self._num_rows = len(empty)

    @property
    def rows(self) -> Tensor:
        """`(rows, ...)`; valid for ever, later appends do not touch it."""
        return self._buffer[: self._num_rows]

    def append(self, added: Tensor) -> None:
        needed = self._num_rows + len(added)
        if needed > len(self._buffer):
            capacity = max(needed, 2 * len(self._buffer), 16)
            grown = self._buffer.new_empty((capacity, *self._buffer.shape[1:]))
            grown[: self._num_rows] = self.rows
            self._buffer = grown
        self._buffer[self._num_rows : needed] = added.to(self._buffer)
        self._num_rows = needed

    def keep(self, kept: Tensor) -> None:
        """Keep the rows whose numbers are in `kept`, `(kept,)` int64, in that order."""
        self._buffer = self.rows[kept.to(self._buffer.device)]
        self._num_rows = len(kept)


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
