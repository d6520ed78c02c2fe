"""A perfect reader: it answers from what it is given to read, so that every score is known."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ModelConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.results import Origin, Prediction
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.networks.values import QuestionEncoding
from mac_core.types import Document, Fingerprint, Modulation

NAMES = ("Ada", "Bela", "Cleo", "Dora", "Ezra", "Flora")
CITIES = ("Ulm", "Oslo", "Rome", "Bath", "Cadiz", "Turin")
D_KEY = 16


def said(*answers: tuple[str, float]) -> list[Prediction]:
    """Answers with their confidences, of questions 0, 1, ...."""
    return [
        Prediction(
            question_id=str(i),
            answer=answer,
            confidence=confidence,
            seconds=0.0,
            batch_size=4,
            num_threads=1,
        )
        for i, (answer, confidence) in enumerate(answers)
    ]


class WordTokenizer:
    """One token a word."""

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, start = [], [], 0
        for word in text.split():
            start = text.index(word, start)
            ids.append(zlib.crc32(word.encode()) % 2**31)
            offsets.append((start, start + len(word)))
            start += len(word)
        return ids, offsets


class BareLayout:
    def document(self, ids: list[int]) -> list[int]:
        return ids


class PerfectReader:
    """Says the city of the first name asked for that it reads, in lower case, else `nowhere`."""

    fingerprint = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
    tokenizer = WordTokenizer()
    layout = BareLayout()
    config = ModelConfig(
        name="perfect",
        amortization=AmortizationConfig(
            kind="t5", num_virtual_tokens=1, d_modulation=4, max_tokens=16, chunk_overlap_tokens=0
        ),
        aggregation=AggregationConfig(kind="attend", d_modulation=4, d_question=4),
        prefix=PrefixConfig(kind="paper"),
        selection=SelectionConfig(d_key=D_KEY, top_k=2),
    )

    def __init__(self) -> None:
        self.batches: list[list[AnswerRequest]] = []
        self.num_amortized: list[int] = []
        self.confidences: dict[str, float] = {}  # by question; else 1

    def amortize(self, chunks: Sequence[str]) -> list[Modulation]:
        self.num_amortized.append(len(chunks))
        return [self._modulation(chunk) for chunk in chunks]

    def _modulation(self, chunk: str) -> Modulation:
        ids, offsets = self.tokenizer.encode_with_offsets(chunk)
        return Modulation(
            slots=torch.zeros(1, 4),
            selection_key=_key(chunk),
            token_ids=torch.tensor(ids),
            token_offsets=torch.tensor(offsets),
        )

    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys:
        return AggregationKeys(tensors=(modulation.slots,))

    def encode_questions(self, questions: Sequence[str]) -> QuestionEncoding:
        keys = torch.stack([_key(question) for question in questions])
        mask = torch.ones(len(keys), 1, dtype=torch.bool)
        return QuestionEncoding(states=keys[:, None], mask=mask, selection_query=keys)

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> torch.Tensor:
        raise AssertionError("this reader does not rank again")

    def answer(self, requests: Sequence[AnswerRequest], **_: Any) -> list[Generated]:
        self.batches.append(list(requests))
        return [self._generated(request) for request in requests]

    def _generated(self, request: AnswerRequest) -> Generated:
        words = {word for text in request.texts for word in self.tokenizer.encode(text)}
        words |= {int(id) for m in request.modulations for id in m.token_ids}
        known = [
            city.lower()
            for name, city in zip(NAMES, CITIES, strict=True)
            if name in request.question and self.tokenizer.encode(name)[0] in words
        ]
        count = len(request.modulations)
        return Generated(
            text=known[0] if known else "nowhere",
            token_ids=(1,),
            confidence=self.confidences.get(request.question, 1.0),
            document_mass=(1 / count,) * count if count else (),
            num_prompt_tokens=1,
            num_prefix_tokens=count,
            num_completion_tokens=1,
        )


def _key(text: str) -> torch.Tensor:
    """One direction for each name, so that cosine finds the right document at once."""
    places = [place for place, name in enumerate(NAMES) if name in text]
    return F.one_hot(torch.tensor(places[0] if places else D_KEY - 1), D_KEY).float()


@pytest.fixture
def reader() -> PerfectReader:
    return PerfectReader()


@pytest.fixture
def documents() -> list[Document]:
    return [
        Document(id=f"d{place}", title=name, text=f"{name} lives in {city} .")
        for place, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]


@pytest.fixture
def questions() -> list[SquadQuestion]:
    """The longer the later the name comes first: sorting by length reorders them."""
    return [
        SquadQuestion(
            id=f"q{place}",
            text=f"Where {'indeed ' * (len(NAMES) - place)}does {name} dwell?",
            references=(city, f"in {city}"),
            document_id=f"d{place}",
        )
        for place, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]


@pytest.fixture
def origin() -> Origin:
    return Origin(
        commit="c" * 40,
        code_sha256="e" * 64,
        bundle="perfect",
        config_fingerprint="f" * 64,
        amortization_hash="a" * 64,
        base_lm_hash="b" * 64,
        data_file="dev.json",
        data_sha256="d" * 64,
        seed=3,
        top_k=2,
        num_readings=1,
        batch_size=4,
        max_new_tokens=8,
        device="cpu",
        num_threads=1,
        precision="float32",
        date="2026-01-01T00:00:00+00:00",
    )
