"""What no question changes is made once: when a document is learned, or its bank is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.model import AnswerRequest, Generated
from mac_core.types import Modulation
from tests.unit.engine.conftest import Bench, MakeBench
from tests.unit.engine.fakes import FakeModel

FACTS = ("The code of vault 1 is Alpha.", "The code of vault 2 is Omega.")


@dataclass
class Keeping(FakeModel):
    """Keeps the keys that it made, and those that it was given with questions."""

    made: list[AggregationKeys] = field(default_factory=list)
    given: list[AggregationKeys | None] = field(default_factory=list)

    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys:
        self.made.append(super().aggregation_keys(modulation))
        return self.made[-1]

    def answer(self, requests: Sequence[AnswerRequest], **named: Any) -> list[Generated]:
        self.given += [keys for request in requests for keys in request.aggregation_keys]
        return super().answer(requests, **named)


def assert_asking_makes_no_keys(bench: Bench, model: Keeping) -> None:
    made = {id(keys) for keys in model.made}
    model.given.clear()  # the warm-up's
    bench.ask("What is the code of vault 1?")
    bench.ask("What is the code of vault 2?", mode="hybrid")
    assert len(model.made) == len(made)
    assert len(model.given) == 2 * len(FACTS)
    assert {id(keys) for keys in model.given} <= made


def test_keys_are_made_when_a_document_is_learned(make_bench: MakeBench) -> None:
    # Defect 6: what depends on documents alone made anew for every question.
    model = Keeping()
    bench = make_bench(model=model)
    bench.learn(*FACTS)
    assert_asking_makes_no_keys(bench, model)


def test_keys_are_made_when_a_bank_is_loaded(make_bench: MakeBench) -> None:
    # Defect 6, after a restart.
    first, model = make_bench(), Keeping()
    first.learn(*FACTS)
    first.engine.close()
    assert_asking_makes_no_keys(make_bench(model=model), model)
