"""A queue of past documents' modulations, detached: training sees a bank of thousands.

A step encodes a handful of documents; questions are told apart from, and read beside, the best of
everything encoded lately. The entries are a few hundred steps old at most, which is close enough
for a negative (He et al. 2020, arXiv 1911.05722), and carry no gradient: together with the batch's
own documents that is MAC's backpropagation dropout (arXiv 2403.04317, section 3.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mac_core.networks.values import DocumentEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class PastDocument:
    """One document as it was encoded some steps ago."""

    paragraph: int  # row in the corpus
    ids: Tensor  # (tokens,), framed
    content: Tensor  # (tokens,), bool: not framing
    slots: Tensor  # (tokens, d_modulation), bfloat16
    selection_key: Tensor  # (d_key,)


class PastDocuments:
    """The last `capacity` documents, oldest first. One thread."""

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity={capacity} is below 0")
        self._documents: deque[PastDocument] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._documents)

    def push(
        self, encoded: DocumentEncoding, *, ids: Tensor, content: Tensor, paragraphs: Tensor
    ) -> None:
        """Keep a batch whose slots are its framed tokens; a paragraph that comes again is renewed.

        Args:
            ids, content: `(documents, tokens)`, framed ids and whether a token is content.
            paragraphs: `(documents,)`, rows in the corpus.
        """
        numbers = paragraphs.tolist()
        known = set(numbers)
        kept = [document for document in self._documents if document.paragraph not in known]
        self._documents.clear()
        self._documents.extend(kept)
        for row, paragraph in enumerate(numbers):
            length = int(encoded.slot_mask[row].sum())
            self._documents.append(
                PastDocument(
                    paragraph=paragraph,
                    ids=ids[row, :length].clone(),
                    content=content[row, :length].clone(),
                    slots=encoded.slots[row, :length].detach().to(torch.bfloat16, copy=True),
                    selection_key=encoded.selection_key[row].detach().clone(),
                )
            )

    def keys(self, *, without: Tensor) -> tuple[Tensor, Tensor]:
        """Selection keys `(entries, d_key)` and places `(entries,)` of all but some paragraphs.

        Args:
            without: paragraphs, rows in the corpus, whose entries are left out.
        """
        hidden = set(without.tolist())
        found = [
            (place, document.selection_key)
            for place, document in enumerate(self._documents)
            if document.paragraph not in hidden
        ]
        if not found:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        places = torch.tensor([place for place, _ in found])
        return torch.stack([key for _, key in found]), places

    def take(self, places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries at these places: ids, content, slots and slot mask, right-padded."""
        chosen = [self._documents[place] for place in places]
        ids = pad_sequence([document.ids for document in chosen], batch_first=True)
        content = pad_sequence([document.content for document in chosen], batch_first=True)
        slots = pad_sequence([document.slots for document in chosen], batch_first=True)
        lengths = torch.tensor([len(document.ids) for document in chosen], device=ids.device)
        return ids, content, slots, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
