"""Newer wins: which of several chosen chunks speaks, by score, likeness and date."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mac_core.engine.newer import NATS, RIVALS, SHARE, newer_first, num_candidates
from mac_core.memory.bank import BankEntry, Selected
from mac_core.memory.quantization import pack
from mac_core.types import Document, Modulation
from tests.unit.engine.conftest import Bench

OLD, MID, NEW = 1e9, 1.1e9, 1.2e9
KEYS = {"same": [1.0, 0.0], "near": [0.8, 0.6], "far": [0.5, 0.87], "other": [0.0, 1.0]}


def chosen(name: str, score: float, date: float | None, key: str = "same") -> Selected:
    modulation = Modulation(
        slots=torch.zeros(1, 1),
        selection_key=F.normalize(torch.tensor(KEYS[key]), dim=0),
        token_ids=torch.zeros(1, dtype=torch.int64),
        token_offsets=torch.zeros(1, 2, dtype=torch.int64),
        pointer_keys=None,
    )
    stored = pack(modulation)
    entry = BankEntry(
        document_id=name, chunk=0, title=None, text=name, start=0, num_tokens=1, metadata={},
        published_at=date, expires_at=None, stored=stored, aggregation_keys=None,
    )  # fmt: skip
    return Selected(entry=entry, score=score, log_prior=0.0, cosine=0.5)


def order(*selected: Selected, top_k: int = 0) -> list[str]:
    return [one.entry.document_id for one in newer_first(selected, top_k=top_k)]


def test_the_newer_of_two_alike_takes_the_place_of_the_older() -> None:
    found = newer_first([chosen("old", 9.0, OLD), chosen("new", 8.0, NEW)], top_k=2)
    assert [(one.entry.document_id, one.score) for one in found] == [
        ("new", 9.0), ("old", 9.0 * SHARE),
    ]  # fmt: skip
    priors = torch.tensor([9.0, 9.0 * SHARE]).log_softmax(dim=0).tolist()
    assert [one.log_prior for one in found] == priors


def test_it_wins_from_behind_the_cut() -> None:
    assert order(chosen("old", 9.0, OLD), chosen("new", 8.0, NEW), top_k=1) == ["new"]


def test_one_that_stands_first_already_stays_and_the_older_falls_behind() -> None:
    found = newer_first([chosen("new", 9.0, NEW), chosen("old", 8.9, OLD)], top_k=2)
    assert [one.score for one in found] == [9.0, 9.0 * SHARE]


@pytest.mark.parametrize(
    "new",
    [
        chosen("new", 8.0, NEW, key="far"),
        chosen("new", 8.0, None),
        chosen("new", 8.0, OLD),
        chosen("new", 9.0 * SHARE - 0.01, NEW),
        chosen("old", 8.0, NEW),
    ],
    ids=["unlike", "undated", "of the same date", "too improbable", "of the same document"],
)
def test_nothing_changes_where_there_is_no_contest(new: Selected) -> None:
    old = chosen("old", 9.0, OLD)
    assert [one.score for one in newer_first([old, new], top_k=2)] == [9.0, new.score]


def test_of_three_versions_the_newest_speaks() -> None:
    versions = [chosen("mid", 9.0, MID), chosen("old", 8.5, OLD), chosen("new", 8.0, NEW)]
    assert order(*versions) == ["new", "mid", "old"]


def test_each_subject_has_its_own_contest() -> None:
    selected = [
        chosen("old", 9.0, OLD), chosen("x-old", 8.9, OLD, key="other"),
        chosen("x-new", 8.8, NEW, key="other"), chosen("new", 8.7, NEW),
    ]  # fmt: skip
    assert order(*selected, top_k=2) == ["new", "x-new"]


def test_what_is_unlike_keeps_its_score_and_comes_between() -> None:
    selected = [
        chosen("old", 9.0, OLD), chosen("new", 8.0, NEW), chosen("plain", 7.8, None, key="other"),
    ]  # fmt: skip
    assert order(*selected) == ["new", "plain", "old"]


def test_nothing_chosen_is_nothing() -> None:
    assert newer_first([], top_k=3) == []


@pytest.mark.parametrize(
    ("top_k", "most", "expected"),
    [(0, 32, 0), (1, 32, 1 + RIVALS), (30, 32, 32), (40, 32, 40)],
)
def test_more_are_selected_than_are_kept(top_k: int, most: int, expected: int) -> None:
    assert num_candidates(top_k, most=most) == expected


QUESTION = "What is the code of the vault?"


def learn_versions(bench: Bench) -> None:
    for name, date in (("Old", OLD), ("New", NEW), ("Mid", MID)):
        text = f"The code of the vault is {name}."
        bench.learn(Document(id=name, text=text, published_at=date))


@pytest.mark.parametrize("mode", ["memory", "hybrid", "text"])
def test_the_engine_answers_with_the_newest(bench: Bench, mode: str) -> None:
    learn_versions(bench)
    assert bench.ask(QUESTION, mode=mode, top_k=1).text == "New"


@pytest.mark.parametrize(("as_of", "expected"), [(OLD, "Old"), (MID, "Mid"), (NEW + 1, "New")])
def test_as_of_a_date_the_newest_of_then_answers(bench: Bench, as_of: float, expected: str) -> None:
    learn_versions(bench)
    assert bench.ask(QUESTION, mode="memory", as_of=as_of).text == expected


def test_before_the_first_there_is_nothing(bench: Bench) -> None:
    learn_versions(bench)
    assert bench.ask(QUESTION, as_of=OLD - 1).sources == ()


def test_rivals_are_told_by_the_first_stage_where_a_second_has_ranked() -> None:
    best = replace(chosen("best", 40.0, OLD), first=10.0)
    rival = replace(chosen("rival", 38.0, MID), first=9.0)
    stranger = replace(chosen("stranger", 39.0, NEW), first=5.0)
    assert order(best, stranger, rival, top_k=1) == ["rival"]


def test_what_late_interaction_puts_far_behind_is_no_rival() -> None:
    best = replace(chosen("best", 40.0, OLD), first=10.0)
    rival = replace(chosen("rival", 40.0 - NATS, MID), first=9.0)
    stranger = replace(chosen("stranger", 39.9 - NATS, NEW), first=9.9)
    assert order(best, rival, stranger, top_k=1) == ["rival"]
