"""Three made-up paragraphs as encoded data and as one batch, in the tiny model's tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from mac_core.training.data import (
    Batch,
    EncodedParagraphs,
    Paragraph,
    QuestionAnswer,
    encode_paragraphs,
    sample_batch,
)
from tests.builders import tiny_tokenizer_json

# No token of an answer stands in another paragraph.
FACTS = (
    ("The Elbe rises in the mountains.", "Where does the Elbe rise?", "mountains"),
    ("The dam in the north was built by the minister of the city.", "Who built it?", "minister"),
    ("Amber is in the harbour and cedar and copper and maple.", "What?", "cedar and copper"),
    ("A bridge of granite was built in the year 1921 in the city.", "When?", "year 1921"),
)


def paragraphs() -> list[Paragraph]:
    return [
        Paragraph(
            text=text,
            article=f"article {number}",
            source="made up",
            questions=(
                QuestionAnswer(
                    question=question, answers=(answer,), answer_start=text.lower().find(answer)
                ),
                QuestionAnswer(
                    question=f"How is the name, {number}?", answers=(), answer_start=None
                ),
            ),
        )
        for number, (text, question, answer) in enumerate(FACTS)
    ]


def encoded() -> EncodedParagraphs:
    fast = FastTokenizer.from_str(tiny_tokenizer_json())
    return encode_paragraphs(paragraphs(), fast)


def sample(*, seed: int = 0, num_paragraphs: int = len(FACTS)) -> Batch:
    """Every paragraph once, in a drawn order, with both its questions; one answer is empty."""
    return sample_batch(
        encoded(),
        None,
        rng=np.random.default_rng(seed),
        num_paragraphs=num_paragraphs,
        questions_per_paragraph=2,
    )


def with_every_occurrence(batch: Batch) -> Batch:
    """The batch with every token equal to the answer's marked, annotated or not."""
    documents = batch.document_ids[batch.question_document]  # (questions, tokens)
    real = batch.document_mask[batch.question_document][:, None] & batch.answer_mask[:, :, None]
    same: Tensor = (batch.answer_ids[:, :, None] == documents[:, None]) & real
    return replace(batch, copy_mask=same)


def rows_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
