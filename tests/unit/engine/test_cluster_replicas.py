"""Two engines on one Redis Cluster: what one wrote the other answers from, on every primary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mac_core.types import Question
from tests.unit.engine.conftest import outcome
from tests.unit.engine.fakes import WAIT_S
from tests.unit.engine.test_replicas import Replica, fact, same

NAMES = ("news", "support", "legal")  # of three primaries


@pytest.fixture
def replicas(redis_cluster_url: str) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        made = [Replica(redis_cluster_url) for _ in range(2)]
        for replica in made:
            stack.callback(replica.engine.close, now=True)
            assert replica.engine.wait_until_ready(timeout_s=WAIT_S), replica.engine.status().detail
        yield made


def test_writes_to_every_primary_are_in_the_next_answer_of_the_other(
    replicas: list[Replica],
) -> None:
    a, b = replicas
    for number, name in enumerate(NAMES):
        (written,) = a.learn(fact(number), namespace=name)
        question = Question(
            text=f"What is the code of vault {number}?", namespace=name,
            min_version=written.bank_version, timeout_ms=20_000,
        )  # fmt: skip
        assert outcome(b.engine.ask(question)).text == f"Alpha{number}"
        assert same(a.view(name), b.view(name))
    assert outcome(b.engine.delete_namespace("legal")).num_removed == 1
    a.wait_for(2, "legal")
    assert a.view("legal").entries == ()
