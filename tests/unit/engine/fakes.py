"""A tiny model with `MacModel`'s surface, clocks turned by hand, and a store that can fail.

The model is honest: what it answers depends only on the question and on what it is given to read.
It copies, from the best document's sentence nearest to the question, the words not in the question.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ModelConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.networks.values import QuestionEncoding
from mac_core.types import Fingerprint, Modulation

FINGERPRINT = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
UNIT = re.compile(r"\w+|[^\w\s]")
D_KEY = 32
WAIT_S = 20.0  # how long a test waits before it calls something stuck

CONFIG = ModelConfig(
    name="fake",
    amortization=AmortizationConfig(
        kind="t5", num_virtual_tokens=2, d_modulation=8, max_tokens=34, chunk_overlap_tokens=4
    ),
    aggregation=AggregationConfig(kind="attend", d_modulation=8, d_question=8),
    prefix=PrefixConfig(kind="wide"),
    selection=SelectionConfig(d_key=D_KEY, top_k=3),
    max_question_tokens=16,
)

_words: dict[int, str] = {}  # what a vocabulary file would be: the same for every instance


class FakeTokenizer:
    """Lower-case words and marks."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = [], []
        for match in UNIT.finditer(text):
            word = match.group().lower()
            ids.append(zlib.crc32(word.encode()) >> 1)
            _words[ids[-1]] = word
            offsets.append(match.span())
        return ids, offsets

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(_words[i] for i in ids)


class FakeLayout:
    def document(self, ids: list[int]) -> list[int]:
        return [1, *ids, 2]


def nothing(*_: Any) -> None:
    """A hook that does nothing."""


@dataclass
class FakeModel:
    """See the module. The hooks run on the engine thread and may block or raise."""

    config: ModelConfig = CONFIG
    fingerprint: Fingerprint = FINGERPRINT
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    layout: FakeLayout = field(default_factory=FakeLayout)
    on_amortize: Callable[[list[str]], None] = nothing
    on_answer: Callable[[list[str]], None] = nothing
    on_step: Callable[[str], None] = nothing
    amortized: list[list[str]] = field(default_factory=list)
    answered: list[list[str]] = field(default_factory=list)
    is_mute: bool = False  # closes every answer at once

    def amortize(self, chunks: Sequence[str]) -> list[Modulation]:
        self.amortized.append(list(chunks))
        self.on_amortize(list(chunks))
        return [self._modulation(chunk) for chunk in chunks]

    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys:
        return AggregationKeys(tensors=(modulation.slots * 2,))

    def encode_questions(self, questions: Sequence[str]) -> QuestionEncoding:
        keys = [self._key(self.tokenizer.encode(question)) for question in questions]
        return QuestionEncoding(
            states=torch.stack(keys)[:, None],
            mask=torch.ones(len(keys), 1, dtype=torch.bool),
            selection_query=torch.stack(keys),
        )

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor:
        """The first stage's last candidate matches best: easy to tell from the first stage."""
        return torch.arange(1.0, len(keys) + 1.0)

    def answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        should_stop: Callable[[int], bool] | None = None,
        observe: Callable[[str, float], None] | None = None,
    ) -> list[Generated]:
        self.answered.append([request.question for request in requests])
        self.on_answer([request.question for request in requests])
        for phase in ("aggregate", "prefill", "decode"):
            (observe or nothing)(phase, 0.001)
        return [self._answer(row, request, should_stop) for row, request in enumerate(requests)]

    def _answer(
        self, row: int, request: AnswerRequest, should_stop: Callable[[int], bool] | None
    ) -> Generated:
        asked = set(self.tokenizer.encode(request.question))
        read = [token for text in request.texts for token in self.tokenizer.encode(text)]
        if request.modulations:
            read = request.modulations[0].token_ids.tolist()
        sentence = max(self._sentences(read), key=lambda words: len(asked & set(words)))
        wanted = [token for token in sentence if token not in asked]
        wanted = [] if self.is_mute else wanted or self.tokenizer.encode("nobody knows")
        written: list[int] = []
        for token in wanted[: request.max_new_tokens]:
            if should_stop is not None and should_stop(row):
                break
            self.on_step(request.question)
            written.append(token)
        return Generated(
            text=self.tokenizer.decode(written),
            token_ids=tuple(written),
            confidence=0.5,
            document_mass=tuple(exp(prior) for prior in request.log_prior),
            num_prompt_tokens=len(asked),
            num_prefix_tokens=sum(len(made.slots) for made in request.modulations),
            num_completion_tokens=len(written),
        )

    def _sentences(self, ids: Sequence[int]) -> list[list[int]]:
        full_stop = self.tokenizer.encode(".")[0]
        sentences: list[list[int]] = [[]]
        for token in ids:
            if token == full_stop:
                sentences.append([])
            else:
                sentences[-1].append(token)
        return sentences

    def _modulation(self, chunk: str) -> Modulation:
        ids, offsets = self.tokenizer.encode_with_offsets(chunk)
        key = self._key(ids)
        return Modulation(
            slots=key[:16].reshape(2, 8) + 0.1,
            selection_key=key,
            token_ids=torch.tensor(ids),
            token_offsets=torch.tensor(offsets),
        )

    def _key(self, ids: Sequence[int]) -> Tensor:
        """Unit length `(d_key,)`: a hashed bag of words."""
        bag = torch.zeros(D_KEY)
        for token in ids:
            bag[token % D_KEY] += 1.0
        return F.normalize(bag, dim=0)


class FailingStore(SqliteStore):
    """A store whose writes raise `error` while it is set."""

    error: Exception | None = None

    def put(self, namespace: str, records: Sequence[DocumentRecord]) -> int:
        if self.error is not None:
            raise self.error
        return super().put(namespace, records)

    def delete(
        self, namespace: str, ids: Sequence[str], *, expired_by: float | None = None
    ) -> tuple[tuple[str, ...], int]:
        if self.error is not None:
            raise self.error
        return super().delete(namespace, ids, expired_by=expired_by)


class Gate:
    """Holds the engine thread at a hook until the test opens it."""

    def __init__(self) -> None:
        self._reached = Event()
        self._opened = Event()

    def __call__(self, *_: Any) -> None:
        self._reached.set()
        if not self._opened.wait(WAIT_S):
            raise AssertionError("the test never opened the gate")

    def wait_until_reached(self) -> None:
        assert self._reached.wait(WAIT_S), "the engine never came to the gate"

    def open(self) -> None:
        self._opened.set()


@dataclass
class HandClock:
    """Both clocks of the engine; they stand still unless turned."""

    monotonic_s: float = 1000.0
    epoch_s: float = 1_700_000_000.0

    def turn(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.epoch_s += seconds


@dataclass
class RecordingObserver:
    """Keeps every figure."""

    phases: list[str] = field(default_factory=list)
    batches: list[tuple[str, int]] = field(default_factory=list)
    documents: list[tuple[str, int]] = field(default_factory=list)
    store_errors: list[str] = field(default_factory=list)

    def observe_phase(self, phase: str, seconds: float) -> None:
        self.phases.append(phase)

    def observe_batch(self, lane: str, size: int) -> None:
        self.batches.append((lane, size))

    def count_documents(self, operation: str, amount: int) -> None:
        self.documents.append((operation, amount))

    def count_store_error(self, operation: str) -> None:
        self.store_errors.append(operation)


def open_failing_store(directory: Path) -> FailingStore:
    return FailingStore(directory, fingerprint=FINGERPRINT)
