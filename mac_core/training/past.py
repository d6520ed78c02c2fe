"""A queue of past documents' modulations, detached: training sees a bank of thousands.

A step encodes a handful of documents; questions are told apart from, and read beside, the best of
everything encoded lately. The entries are a few hundred steps old at most, which is close enough
for a negative (He et al. 2020, arXiv 1911.05722), and carry no gradient: together with the batch's
own documents that is MAC's backpropagation dropout (arXiv 2403.04317, section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.networks.values import DocumentEncoding

EMPTY = -1  # paragraph of a row that holds nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Where the queue lies, on the device of what was pushed first; row `r` is one document."""

    paragraph: Tensor  # (capacity,), int64, row in the corpus; EMPTY: none
    order: Tensor  # (capacity,), int64: the higher, the later it came
    length: Tensor  # (capacity,), int64, tokens that are real
    ids: Tensor  # (capacity, tokens), framed
    content: Tensor  # (capacity, tokens), bool: not framing
    slots: Tensor  # (capacity, tokens, d_modulation), bfloat16
    selection_key: Tensor  # (capacity, d_key), float32

    @classmethod
    def like(cls, encoded: DocumentEncoding, *, capacity: int) -> Rows:
        """Room for documents like these."""
        device, (_, tokens, width) = encoded.slots.device, encoded.slots.shape
        numbers = torch.zeros(capacity, dtype=torch.int64, device=device)
        places = torch.zeros(capacity, tokens, dtype=torch.int64, device=device)
        return cls(
            paragraph=numbers + EMPTY,
            order=numbers.clone(),
            length=numbers.clone(),
            ids=places,
            content=places.bool(),
            slots=torch.zeros((capacity, tokens, width), dtype=torch.bfloat16, device=device),
            selection_key=torch.zeros(capacity, encoded.selection_key.shape[-1], device=device),
        )

    def wider(self, tokens: int) -> Rows:
        """With room for documents of `tokens`."""
        more = max(0, tokens - self.ids.shape[1])
        if not more:
            return self
        return replace(
            self,
            ids=F.pad(self.ids, (0, more)),
            content=F.pad(self.content, (0, more)),
            slots=F.pad(self.slots, (0, 0, 0, more)),
        )


class PastDocuments:
    """The last `capacity` documents. One thread.

    Nothing of it is copied to the CPU, and nothing is done document by document: on a GPU, a step
    would wait for it longer than it computes.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity={capacity} is below 0")
        self.capacity = capacity
        self._rows: Rows | None = None
        self._pushed = 0

    def __len__(self) -> int:
        return 0 if self._rows is None else int((self._rows.paragraph != EMPTY).sum())

    def push(
        self, encoded: DocumentEncoding, *, ids: Tensor, content: Tensor, paragraphs: Tensor
    ) -> None:
        """Keep a batch whose slots are its framed tokens; a paragraph that comes again is renewed.

        Args:
            ids, content: `(documents, tokens)`, framed ids and whether a token is content.
            paragraphs: `(documents,)`, rows in the corpus, all different.
        """
        if self.capacity == 0:
            return
        tokens = encoded.slots.shape[1]
        rows = self._rows or Rows.like(encoded, capacity=self.capacity)
        self._rows = rows = rows.wider(tokens)
        count = min(len(ids), self.capacity)
        paragraphs = paragraphs[-count:].to(rows.paragraph.device)
        rows.paragraph[torch.isin(rows.paragraph, paragraphs)] = EMPTY
        age = torch.where(rows.paragraph == EMPTY, -1, rows.order)
        place = age.argsort(stable=True)[:count]  # the empty ones, then the oldest
        rows.paragraph[place] = paragraphs
        rows.order[place] = self._pushed + torch.arange(count, device=place.device)
        rows.length[place] = encoded.slot_mask[-count:].sum(1)
        rows.ids[place, :tokens] = ids[-count:, :tokens]
        rows.content[place, :tokens] = content[-count:, :tokens]
        rows.slots[place, :tokens] = encoded.slots[-count:, :tokens].detach().to(torch.bfloat16)
        rows.selection_key[place] = encoded.selection_key[-count:].detach().float()
        self._pushed += count

    def keys(self, *, without: Tensor) -> tuple[Tensor, Tensor]:
        """Selection keys `(entries, d_key)` and places `(entries,)` of all but some paragraphs.

        Args:
            without: paragraphs, rows in the corpus, whose entries are left out.
        """
        if self._rows is None:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        paragraph = self._rows.paragraph
        hidden = torch.isin(paragraph, without.to(paragraph.device)) | (paragraph == EMPTY)
        places = (~hidden).nonzero().squeeze(1)
        return self._rows.selection_key[places], places

    def take(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries at these places: ids, content, slots and slot mask, right-padded.

        Args:
            places: `(entries,)`, as `keys` gives them.

        Raises:
            IndexError: nothing has been pushed yet.
        """
        if self._rows is None:
            raise IndexError("an empty queue has no entries")
        rows, places = self._rows, places.to(self._rows.length.device)
        length = rows.length[places]
        tokens = int(length.max()) if len(places) else 0
        mask = torch.arange(tokens, device=length.device) < length[:, None]
        return (
            rows.ids[places, :tokens] * mask,
            rows.content[places, :tokens] & mask,
            rows.slots[places, :tokens],
            mask,
        )
