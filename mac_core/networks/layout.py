"""How documents, questions and answers are framed in token ids; nobody else knows the markers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mac_core.tokenization import Tokenizer

QUESTION_CUE = "Question: "
ANSWER_CUE = "\nAnswer:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Markers around a document and around a question; `end_id` closes an answer."""

    document_head: tuple[int, ...]
    document_tail: tuple[int, ...]
    question_head: tuple[int, ...]
    question_tail: tuple[int, ...]
    end_id: int
    pad_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Layout:
        """`[CLS] ... [SEP]` where the vocabulary has them, else a plain-text cue.

        Raises:
            ValueError: the vocabulary has neither `[SEP]` nor a usual end-of-text token.
        """
        cls_id, sep_id = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
        if cls_id is not None and sep_id is not None:
            head, tail = (cls_id,), (sep_id,)
            pad_id = tokenizer.token_id("[PAD]") or 0
            return cls(
                document_head=head,
                document_tail=tail,
                question_head=head,
                question_tail=tail,
                end_id=sep_id,
                pad_id=pad_id,
            )
        for token in ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"):
            end_id = tokenizer.token_id(token)
            if end_id is not None:
                return cls(
                    document_head=(),
                    document_tail=tuple(tokenizer.encode("\n\n")),
                    question_head=tuple(tokenizer.encode(QUESTION_CUE)),
                    question_tail=tuple(tokenizer.encode(ANSWER_CUE)),
                    end_id=end_id,
                    pad_id=end_id,
                )
        raise ValueError("the tokenizer has neither [SEP] nor a known end-of-text token")

    def document(self, ids: list[int]) -> list[int]:
        return [*self.document_head, *ids, *self.document_tail]

    def question(self, ids: list[int]) -> list[int]:
        return [*self.question_head, *ids, *self.question_tail]


def pad_rows(rows: list[list[int]], *, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-pad to one length: ids `(batch, tokens)` int64 and mask `(batch, tokens)` bool."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return ids.to(device), mask.to(device)
