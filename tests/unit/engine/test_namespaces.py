"""Namespaces through the engine: isolation, deletion, and versions that never come twice."""

from __future__ import annotations

import pytest

from mac_core.errors import BankBehind, InvalidInput
from mac_core.types import Document, Mode, Question
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import Gate

CANARIES = {"one": "The secret word is albatross.", "two": "The secret word is basilisk."}
QUESTION = "What is the secret word?"


@pytest.mark.parametrize("mode", ["memory", "hybrid", "text"])
def test_the_canaries_of_two_tenants_never_cross(bench: Bench, mode: Mode) -> None:
    for namespace, text in CANARIES.items():
        bench.learn(Document(id="same-id", text=text), namespace=namespace)
    answers = {name: bench.ask(QUESTION, namespace=name, mode=mode, top_k=0) for name in CANARIES}
    assert {name: answer.text for name, answer in answers.items()} == {
        "one": "albatross", "two": "basilisk",
    }  # fmt: skip
    assert [len(answer.sources) for answer in answers.values()] == [1, 1]
    bench.learn("Something else altogether.", namespace="one")
    outcome(bench.engine.remove(["same-id"], namespace="one"))
    crossed = bench.ask(QUESTION, namespace="one", mode=mode, top_k=0)
    assert "basilisk" not in f"{crossed.text} {crossed.sources}"
    assert bench.ask(QUESTION, namespace="two", mode=mode).text == "basilisk"


def test_a_made_namespace_is_known_at_its_version(bench: Bench) -> None:
    result = outcome(bench.engine.create_namespace("n"))
    assert (result.has_changed, result.bank_version) == (True, 1)
    assert bench.engine.bank_version("n") == 1
    assert outcome(bench.engine.create_namespace("n")).has_changed is False
    assert bench.ask(QUESTION, namespace="n", min_version=1).sources == ()


def test_a_deleted_namespace_answers_as_one_that_never_was(bench: Bench) -> None:
    bench.learn(CANARIES["one"], namespace="n")
    result = outcome(bench.engine.delete_namespace("n"))
    assert (result.has_changed, result.num_removed, result.bank_version) == (True, 1, 2)
    answer = bench.ask(QUESTION, namespace="n", min_version=2)
    assert (answer.sources, answer.bank_version) == ((), 2)
    assert outcome(bench.engine.list_namespaces()) == []
    assert ("removed", 1) in bench.observer.documents


def test_what_was_not_there_is_not_deleted(bench: Bench) -> None:
    result = outcome(bench.engine.delete_namespace("nowhere"))
    assert (result.has_changed, result.num_removed, result.bank_version) == (False, 0, 0)


def test_min_version_stays_true_over_a_deletion(bench: Bench) -> None:
    bench.learn("One.", namespace="n")
    outcome(bench.engine.delete_namespace("n"))
    (written,) = bench.learn(CANARIES["one"], namespace="n")
    assert written.bank_version == 3
    answer = bench.ask(QUESTION, namespace="n", min_version=3)
    assert (answer.text, answer.bank_version) == ("albatross", 3)
    ahead = bench.engine.ask(Question(text=QUESTION, namespace="n", min_version=4))
    bench.engine.close()
    with pytest.raises(BankBehind, match="version 3, asked for 4"):
        outcome(ahead)


def test_a_deletion_takes_its_turn_among_the_documents(make_bench: MakeBench) -> None:
    bench, gate = make_bench(), Gate()
    bench.model.on_amortize = gate
    first = bench.engine.add([Document(text="One.")], namespace="n")
    gate.wait_until_reached()
    deletion = bench.engine.delete_namespace("n")
    second = bench.engine.add([Document(text="Two.")], namespace="n")
    gate.open()
    assert outcome(first)[0].bank_version == 1
    assert outcome(deletion).num_removed == 1
    assert outcome(second)[0].bank_version == 3
    assert [info.num_documents for info in outcome(bench.engine.list_namespaces())] == [1]


def test_a_name_that_is_none_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="namespace"):
        outcome(bench.engine.create_namespace("a\x00b"))
    with pytest.raises(InvalidInput, match="namespace"):
        outcome(bench.engine.delete_namespace(""))


def test_a_deletion_survives_a_restart(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.learn(CANARIES["one"], namespace="n")
    outcome(bench.engine.delete_namespace("n"))
    bench.engine.close()
    again = make_bench()
    assert again.engine.status().num_documents == 0
    (written,) = again.learn("Two.", namespace="n")
    assert written.bank_version == 3
