"""A bank in which removed chunks are hidden first: nobody who reads it can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_core.config import SelectionConfig
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.records import DocumentRecord
from mac_core.memory.views import GONE

MakeRecord = Callable[..., DocumentRecord]
SELECTION = SelectionConfig(d_key=8, top_k=2, num_candidates=3)
WORDS = ["cat", "dog", "rain", "moon"]


def lazy() -> MemoryBank:
    return MemoryBank(SELECTION, lazy_chunks=0)


def ask(bank: MemoryBank, view: BankView, text: str, **changes: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(len(text))
    arguments: dict[str, Any] = {
        "query": F.normalize(torch.randn(8, generator=generator), dim=0),
        "text": text, "top_k": 2, "filter": {}, "as_of": None, "now": 1000.0,
    }  # fmt: skip
    found = bank.select(view, **(arguments | changes))
    return [(s.entry.document_id, s.entry.chunk, s.score, s.log_prior, s.cosine) for s in found]


def make_records(make_record: MakeRecord, count: int) -> list[DocumentRecord]:
    return [
        make_record(
            f"d{n}", f"{WORDS[n % 4]} {WORDS[n % 3]} {n % 7}", metadata={"odd": n % 2 == 1},
            expires_at=[None, 1500.0 + n][n % 5 == 0], parts=[f"{WORDS[n % 4]} ", f"{n % 7}"],
        )
        for n in range(count)
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    removed=st.lists(st.sets(st.integers(0, 79), max_size=3), min_size=1, max_size=6),
    text=st.sampled_from(["cat dog", "rain", "6 moon", ""]),
    changes=st.sampled_from(
        [{}, {"top_k": 0}, {"mode": "bm25"}, {"filter": {"odd": True}}, {"now": 1540.0}]
    ),
)
def test_hidden_is_as_good_as_never_held(
    make_record: MakeRecord, removed: list[set[int]], text: str, changes: dict[str, Any]
) -> None:
    records, bank, never = make_records(make_record, 80), lazy(), MemoryBank(SELECTION)
    bank.apply("default", 1, (), records)
    for version, numbers in enumerate(removed, start=2):
        view = bank.apply("default", version, [f"d{n}" for n in numbers], [])
    gone = {f"d{n}" for numbers in removed for n in numbers}
    other = never.apply("default", 1, (), [r for r in records if r.id not in gone])
    assert ask(bank, view, text, **changes) == ask(never, other, text, **changes)
    assert [entry for entry in view.entries if entry is not GONE] == [
        bank.view("default").entries[place] for place in view.alive.nonzero()[:, 0].tolist()
    ]
    assert (view.num_documents, view.num_chunks, view.num_bytes, view.next_expiry) == (
        *(other.num_documents, other.num_chunks, other.num_bytes, other.next_expiry),
    )


def test_what_is_hidden_is_taken_out_when_it_is_much(make_record: MakeRecord) -> None:
    records, bank = make_records(make_record, 80), lazy()
    bank.apply("default", 1, (), records)
    view = bank.apply("default", 2, ["d3"], [])
    assert (len(view.entries), view.num_chunks) == (160, 158)
    view = bank.apply("default", 3, [f"d{n}" for n in range(10, 20)], [])
    assert len(view.entries) == view.num_chunks == 138
    assert bool(view.alive.all())


def test_hiding_leaves_older_views_whole(make_record: MakeRecord) -> None:
    bank = lazy()
    before = bank.apply("default", 1, (), make_records(make_record, 80))
    shown = ask(bank, before, "", top_k=0)
    bank.apply("default", 2, ["d3"], [])
    assert ask(bank, before, "", top_k=0) == shown
    assert before.entries[6].document_id == "d3"


def test_an_update_of_a_hidden_document_is_there_once(make_record: MakeRecord) -> None:
    bank = lazy()
    bank.apply("default", 1, (), make_records(make_record, 80))
    for version in range(2, 5):
        view = bank.apply("default", version, (), [make_record("d3", "comet")])
    found = ask(bank, view, "comet", mode="bm25")
    assert [(document_id, chunk) for document_id, chunk, *_ in found] == [("d3", 0)]
    assert view.num_documents == 80


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_bm25_ranked_by_sqlite_is_bm25_ranked_here(make_record: MakeRecord, top_k: int) -> None:
    bank = MemoryBank(SELECTION)
    view = bank.apply("default", 1, (), make_records(make_record, 200))
    for text in ("cat", "dog rain 6", "moon cat dog 1 2 3"):
        here = ask(bank, view, text, top_k=top_k, mode="bm25", as_of=5000.0)
        assert ask(bank, view, text, top_k=top_k, mode="bm25") == here
        here = ask(bank, view, text, top_k=top_k, as_of=5000.0)
        assert ask(bank, view, text, top_k=top_k) == here
