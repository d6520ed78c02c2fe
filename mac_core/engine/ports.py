"""What the engine needs of its surroundings, as types: the model's surface, and a quiet observer.

`MacModel` satisfies `AnsweringModel`; so does the tests' tiny model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from mac_core.config import ModelConfig
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.networks.values import QuestionEncoding
from mac_core.types import Fingerprint, Modulation


class DocumentTokenizer(Protocol):
    """Tokens as the engine counts them, without special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...


class DocumentLayout(Protocol):
    """How a chunk's ids are framed; the frame takes room in the amortization network."""

    def document(self, ids: list[int]) -> list[int]: ...


class AnsweringModel(Protocol):
    """The model as the engine uses it; engine thread only."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def tokenizer(self) -> DocumentTokenizer: ...

    @property
    def layout(self) -> DocumentLayout: ...

    def amortize(self, chunks: Sequence[str]) -> list[Modulation]: ...

    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys: ...

    def encode_questions(self, questions: Sequence[str]) -> QuestionEncoding: ...

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor: ...

    def answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        should_stop: Callable[[int], bool] | None = None,
        observe: Callable[[str, float], None] | None = None,
    ) -> list[Generated]: ...


class SilentObserver:
    """An `EngineObserver` for whoever wants no figures."""

    def observe_phase(self, phase: str, seconds: float) -> None: ...

    def observe_batch(self, lane: str, size: int) -> None: ...

    def count_documents(self, operation: str, amount: int) -> None: ...

    def count_store_error(self, operation: str) -> None: ...
