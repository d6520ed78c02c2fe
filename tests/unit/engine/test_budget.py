"""A namespace with a limit: refused, or made room for, but never by a batch's own documents."""

from __future__ import annotations

import pytest

from mac_core.config import BudgetConfig
from mac_core.errors import BankFull, StoreError
from mac_core.types import Document
from tests.unit.engine.conftest import Bench, MakeBench, outcome

CITIES = {"France": "Paris", "Norway": "Oslo", "Italy": "Rome", "Peru": "Lima"}


def document(land: str, **options: object) -> Document:
    return Document(id=land, text=f"The capital of {land} is {CITIES[land]}.", **options)


def names(bench: Bench) -> list[str]:
    page = outcome(
        bench.engine.list_documents(namespace="default", limit=9, cursor=None, filter={})
    )
    held = bench.engine._thread.serving.bank.view("default").entries
    listed = [info.id for info in page.documents]
    assert listed == [entry.document_id for entry in held]
    return listed


def test_a_full_bank_refuses_and_keeps_what_it_has(make_bench: MakeBench) -> None:
    bench = make_bench(budget=BudgetConfig(max_documents=2))
    results = bench.learn(*map(document, CITIES))
    assert [result.status for result in results] == ["inserted", "inserted", "failed", "failed"]
    assert isinstance(results[2].error, BankFull)
    assert names(bench) == ["France", "Norway"]
    assert ("refused_full", 2) in bench.observer.documents
    outcome(bench.engine.remove(["France"]))
    assert bench.learn(document("Peru"))[0].status == "inserted"


def test_the_oldest_makes_room_after_the_new_one_is_durable(make_bench: MakeBench) -> None:
    bench = make_bench(budget=BudgetConfig(max_documents=2, policy="oldest"))
    for land in CITIES:
        assert bench.learn(document(land))[0].status == "inserted"
    assert names(bench) == ["Italy", "Peru"]
    assert bench.observer.documents.count(("evicted_oldest", 1)) == 2
    assert bench.engine.bank_version("default") == 6
    assert bench.ask("What is the capital of France?").text != "Paris"


def test_nothing_of_a_batch_makes_room_for_the_rest_of_it(make_bench: MakeBench) -> None:
    bench = make_bench(budget=BudgetConfig(max_documents=3, policy="oldest"), max_batch_chunks=1)
    bench.learn(document("France"), document("Norway"))
    results = bench.learn(*map(document, CITIES))
    assert [r.status for r in results] == ["unchanged", "unchanged", "inserted", "failed"]
    assert isinstance(results[3].error, BankFull)
    assert names(bench) == ["France", "Norway", "Italy"]


def test_the_least_used_makes_room(make_bench: MakeBench) -> None:
    bench = make_bench(budget=BudgetConfig(max_documents=2, policy="least_used"))
    bench.learn(document("France"))
    bench.learn(document("Norway"))
    source = bench.ask("What is the capital of France?", top_k=1).sources[0]
    assert source.id == "France"
    bench.learn(document("Italy"))
    assert names(bench) == ["France", "Italy"]
    assert ("evicted_least_used", 1) in bench.observer.documents


def test_pinned_is_kept_listed_and_survives_a_restart(make_bench: MakeBench) -> None:
    budget = BudgetConfig(max_documents=2, policy="oldest")
    first = make_bench(budget=budget)
    first.learn(document("France", pinned=True))
    first.learn(document("Norway"))
    assert outcome(first.engine.get_document("France", namespace="default")).pinned
    first.engine.close()
    second = make_bench(budget=budget)
    for land in ("Italy", "Peru"):
        second.learn(document(land))
    assert names(second) == ["France", "Peru"]
    page = outcome(
        second.engine.list_documents(namespace="default", limit=9, cursor=None, filter={})
    )
    assert [info.pinned for info in page.documents] == [True, False]


def test_pinning_and_unpinning_are_updates(make_bench: MakeBench) -> None:
    bench = make_bench()
    statuses = [
        bench.learn(document("France", pinned=pinned))[0].status
        for pinned in (False, True, True, False)
    ]
    assert statuses == ["inserted", "updated", "unchanged", "updated"]


def test_when_room_cannot_be_made_the_new_one_stays_and_the_next_write_makes_it(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(budget=BudgetConfig(max_documents=1, policy="oldest"))
    bench.learn(document("France"))

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(bench.store, "delete", fail)
    assert bench.learn(document("Norway"))[0].status == "inserted"
    assert names(bench) == ["France", "Norway"]
    assert bench.observer.store_errors == ["delete"]
    monkeypatch.undo()
    bench.learn(document("Italy"))
    assert names(bench) == ["Italy"]
