"""BM25 of one question over one view: which chunks are best, and the score of any chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from mac_core.memory.index import Bm25Index, best_rows
from mac_core.memory.views import BankView


class Words:
    """The question's words in the view's chunks. Engine thread only.

    Args:
        index: of the view's namespace; None: nothing is found.
        eligible: bool `(bank_size,)`: the chunks that take part.
        is_whole: they are all that the index holds, so that it can rank by itself: what is scored
            is then the best and what is asked for. Otherwise every chunk with a word is.
    """

    def __init__(
        self,
        index: Bm25Index | None,
        view: BankView,
        text: str,
        eligible: Tensor,
        *,
        is_whole: bool,
    ) -> None:
        self._index = index
        self._view = view
        self._text = text
        self._eligible = eligible
        self._is_whole = is_whole
        self._scores = torch.zeros(len(view.entries))  # 0 where no word is shared
        if index is not None and not is_whole:
            self._keep(index.search(text))

    def best(self, *, limit: int) -> Tensor:
        """Places of the `limit` best and whatever ties with the last of them, ascending."""
        if self._index is not None and self._is_whole:
            return self._keep(self._index.best(self._text, limit=limit)).sort().values
        return best_rows(self._scores, self._eligible & (self._scores > 0), limit=limit)

    def scores(self, places: Tensor) -> Tensor:
        """float32 `(places,)`, 0 where no word is shared."""
        if self._index is not None and self._is_whole:
            rows = self._view.rows[places[self._scores[places] == 0]]
            self._keep(list(self._index.scores(self._text, rows.tolist()).items()))
        return self._scores[places]

    def _keep(self, hits: list[tuple[int, float]]) -> Tensor:
        """Note the scores of rows; the places of those that the view holds."""
        found = torch.tensor([row for row, _ in hits], dtype=torch.int64)
        values = torch.tensor([score for _, score in hits], dtype=torch.float32)
        places = torch.searchsorted(self._view.rows, found).clamp(max=len(self._view.rows) - 1)
        # The index may be newer than the view: what the view does not hold is left out.
        known = self._view.rows[places] == found
        self._scores[places[known]] = values[known]
        return places[known]
