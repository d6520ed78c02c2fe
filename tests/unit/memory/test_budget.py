"""Who may come and who goes: limits, pinned documents, batches, and how often a document helped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_core.config import BudgetConfig, SelectionConfig
from mac_core.errors import BankFull
from mac_core.memory.bank import MemoryBank
from mac_core.memory.budget import Budget
from mac_core.memory.records import DocumentRecord
from mac_core.memory.usage import UsageCounter
from mac_core.types import Source

MakeRecord = Callable[..., DocumentRecord]
DAY_S = 86_400.0


class Case:
    """A bank with a budget, and a clock turned by hand."""

    def __init__(self, records: list[DocumentRecord] = (), **config: Any) -> None:
        self.now = 0.0
        self.bank = MemoryBank(SelectionConfig(d_key=8), lazy_chunks=0)
        self.usage = UsageCounter(now=lambda: self.now)
        self.budget = Budget(BudgetConfig(**config), self.bank, self.usage)
        self.bank.apply("default", 1, (), records)

    def use(self, name: str, mass: float) -> None:
        source = Source(id=name, chunk=0, score=mass, title=None, snippet="")
        self.usage.note("default", [source])

    def victims(self, *protected: str) -> list[str]:
        return self.budget.victims("default", protected=protected)

    def refused(self, *records: DocumentRecord, protected: tuple[str, ...] = ()) -> list[str]:
        return list(self.budget.admit("default", records, protected=protected))


def named(make_record: MakeRecord, names: str, **changes: Any) -> list[DocumentRecord]:
    return [make_record(name, f"text {name}", **changes) for name in names]


def test_without_limits_everything_may_come_and_nothing_goes(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "abc"), policy="oldest")
    assert not case.budget.is_limited
    assert case.refused(*named(make_record, "def")) == []
    assert case.victims() == []


def test_refusing_takes_what_fits_in_order(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "ab"), max_documents=3)
    refused = case.budget.admit("default", named(make_record, "cde"), protected=())
    assert list(refused) == ["d", "e"]
    assert isinstance(refused["d"], BankFull)
    assert "'default' would hold 4 documents" in str(refused["d"])
    assert "limit is 3" in str(refused["d"])
    assert case.victims() == []


def test_refusing_lets_an_update_of_a_full_bank_through(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "abc"), max_documents=3)
    assert case.refused(make_record("b", "new"), make_record("d")) == ["d"]


def test_bytes_are_those_of_modulations(make_record: MakeRecord) -> None:
    records = named(make_record, "abc")
    each = records[0].chunks[0].stored.num_bytes
    case = Case(records, max_bytes=4 * each)
    long = make_record("l", "one two", parts=["one ", "two"])
    assert case.refused(long, make_record("d")) == ["l"]
    assert case.refused(make_record("a", "one two", parts=["one ", "two"])) == []
    assert "bytes" in str(case.budget.admit("default", [long], protected=())["l"])


def test_the_oldest_go_first_and_an_update_makes_young(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "abcd"), max_documents=2, policy="oldest")
    assert case.victims() == ["a", "b"]
    case.bank.apply("default", 2, (), [make_record("a", "new")])
    assert case.victims() == ["b", "c"]


def test_pinned_and_protected_documents_stay(make_record: MakeRecord) -> None:
    records = [*named(make_record, "ab", pinned=True), *named(make_record, "cdef")]
    case = Case(records, max_documents=3, policy="oldest")
    assert case.victims("c") == ["d", "e", "f"]
    assert case.refused(make_record("g"), make_record("h"), protected=("g", "h")) == ["h"]


def test_what_would_not_fit_beside_the_pinned_is_refused(make_record: MakeRecord) -> None:
    records = [*named(make_record, "ab", pinned=True), *named(make_record, "c")]
    case = Case(records, max_documents=2, policy="least_used")
    assert case.refused(make_record("d")) == ["d"]
    assert case.refused(make_record("a", "new")) == []


def test_a_long_document_goes_whole(make_record: MakeRecord) -> None:
    long = make_record("l", "one two", parts=["one ", "two"])
    each = long.chunks[0].stored.num_bytes
    case = Case([long, *named(make_record, "bc")], max_bytes=3 * each, policy="oldest")
    assert case.victims() == ["l"]


def test_the_least_used_go_first_the_never_used_before_them(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "abcd"), max_documents=1, policy="least_used")
    case.use("a", 0.9)
    case.use("c", 0.2)
    case.use("c", 0.3)
    assert case.victims() == ["b", "d", "c"]
    assert case.victims("d") == ["b", "c", "a"]


def test_use_is_halved_every_day(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "ab"), max_documents=1, policy="least_used")
    case.use("a", 0.9)
    case.now = 2 * DAY_S
    case.use("b", 0.3)
    assert case.victims() == ["a"]
    case.now = 3 * DAY_S
    case.use("a", 0.1)
    assert case.victims() == ["b"]


def test_use_over_years_keeps_its_order(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "abc"), max_documents=1, policy="least_used")
    case.use("a", 1.0)
    case.now = 499 * DAY_S
    case.use("b", 0.5)
    case.now = 1100 * DAY_S
    case.use("c", 0.1)
    assert case.victims() == ["a", "b"]


def test_a_removed_document_that_comes_again_begins_anew(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "ab"), max_documents=1, policy="least_used")
    case.use("a", 0.9)
    case.budget.forget("default", ["a"])
    assert case.victims() == ["a"]


def test_namespaces_have_the_limit_each(make_record: MakeRecord) -> None:
    case = Case(named(make_record, "ab"), max_documents=2)
    other = [make_record("c", namespace="other")]
    assert list(case.budget.admit("other", other, protected=())) == []


@settings(max_examples=60, deadline=None)
@given(
    pinned=st.sets(st.sampled_from("abcdefghij")),
    used=st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0.01, 1)),
    removed=st.sets(st.sampled_from("abcdefghij"), max_size=4),
    policy=st.sampled_from(["oldest", "least_used"]),
    limit=st.integers(1, 10),
)
def test_after_the_victims_the_bank_is_within_its_limit_or_all_pinned(
    make_record: MakeRecord, pinned: Any, used: Any, removed: Any, policy: Any, limit: int
) -> None:
    records = [make_record(name, pinned=name in pinned) for name in "abcdefghij"]
    case = Case(records, max_documents=limit, policy=policy)
    case.bank.apply("default", 2, list(removed), [])
    for name, mass in used.items():
        case.use(name, mass)
    victims = case.victims()
    assert not set(victims) & (pinned | removed)
    view = case.bank.apply("default", 3, victims, [])
    assert view.num_documents <= max(limit, len(pinned - removed))
    assert view.num_pinned_documents == len(pinned - removed)
    expected = sum(r.chunks[0].stored.num_bytes for r in records if r.id in pinned - removed)
    assert view.num_pinned_bytes == expected


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="max_documents=0"):
        BudgetConfig(max_documents=0)
