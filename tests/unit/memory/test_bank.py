"""What the engine reads: order, isolation, selection, and deletion without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mac_core.config import SelectionConfig
from mac_core.memory.bank import BankView, MemoryBank, Selected
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.types import Fingerprint

MakeRecord = Callable[..., DocumentRecord]
D_KEY = 8
SELECTION = SelectionConfig(d_key=D_KEY, top_k=2, num_candidates=3)
TEXTS = ["the cat sat", "a dog barked at the cat", "rain in spain", "cat and dog", "old rain"]


@pytest.fixture
def bank() -> MemoryBank:
    return MemoryBank(SELECTION)


@pytest.fixture
def records(make_record: MakeRecord) -> list[DocumentRecord]:
    return [make_record(f"d{number}", text) for number, text in enumerate(TEXTS)]


def query_of(seed: int) -> Tensor:
    return F.normalize(torch.randn(D_KEY, generator=torch.Generator().manual_seed(seed)), dim=0)


def ask(bank: MemoryBank, view: BankView, text: str = "cat", **changes: Any) -> list[Selected]:
    arguments: dict[str, Any] = {
        "query": query_of(1), "text": text, "top_k": 2, "filter": {}, "as_of": None, "now": 1000.0,
    }  # fmt: skip
    return bank.select(view, **(arguments | changes))


def outcome(selected: list[Selected]) -> list[tuple[str, int, float, float]]:
    return [(s.entry.document_id, s.entry.chunk, s.score, s.log_prior) for s in selected]


def ids_of(view: BankView) -> list[str]:
    return [entry.document_id for entry in view.entries]


def test_an_unknown_namespace_is_empty_at_version_zero(bank: MemoryBank) -> None:
    view = bank.view("nowhere")
    assert (view.version, view.entries, view.num_documents, view.num_bytes) == (0, (), 0, 0)
    assert view.selection_keys.shape == (0, D_KEY)
    assert ask(bank, view) == []
    assert bank.namespaces() == ()


def test_apply_publishes_the_given_version(bank: MemoryBank, records: list[DocumentRecord]) -> None:
    view = bank.apply("default", 7, (), records)
    assert bank.view("default") is view
    assert (view.version, view.num_documents, len(view.entries)) == (7, 5, 5)
    assert view.num_bytes == sum(r.chunks[0].stored.num_bytes for r in records)
    expected = torch.stack([r.chunks[0].stored.selection_key_float() for r in records])
    assert torch.equal(view.selection_keys, expected)


def test_entries_know_their_place_in_the_document(
    bank: MemoryBank, make_record: MakeRecord
) -> None:
    record = make_record("d", "one two", parts=["one ", "two"], title="T", metadata={"k": 1})
    keys: list[Any] = ["keys 0", "keys 1"]
    first, second = bank.apply("default", 1, (), [record], [keys]).entries
    assert (first.chunk, first.text, first.start) == (0, "one ", 0)
    assert (second.chunk, second.text, second.start) == (1, "two", 4)
    assert (second.title, second.metadata, second.aggregation_keys) == ("T", {"k": 1}, "keys 1")


def test_a_view_never_changes(bank: MemoryBank, records: list[DocumentRecord]) -> None:
    view = bank.apply("default", 1, (), records[:3])
    keys, before = view.selection_keys.clone(), outcome(ask(bank, view, text=""))
    bank.apply("default", 2, (), records[3:])
    bank.apply("default", 3, ["d0"], [])
    assert ids_of(view) == ["d0", "d1", "d2"]
    assert torch.equal(view.selection_keys, keys)
    assert outcome(ask(bank, view, text="")) == before


def test_an_old_view_is_not_confused_by_newer_rows(
    bank: MemoryBank, records: list[DocumentRecord]
) -> None:
    view = bank.apply("default", 1, (), records[:2])
    bank.apply("default", 2, ["d0"], records[2:])
    assert {s.entry.document_id for s in ask(bank, view, top_k=0)} == {"d0", "d1"}
    assert ask(bank, view, text="rain", mode="bm25") == []


def test_an_update_moves_to_the_end(
    bank: MemoryBank, records: list[DocumentRecord], make_record: MakeRecord
) -> None:
    bank.apply("default", 1, (), records)
    view = bank.apply("default", 2, (), [make_record("d1", "new words")])
    assert ids_of(view) == ["d0", "d2", "d3", "d4", "d1"]
    assert view.entries[-1].text == "new words"
    assert view.num_documents == 5
    assert [s.entry.text for s in ask(bank, view, text="barked", mode="bm25")] == []


def test_wrong_keys_change_nothing(
    bank: MemoryBank, records: list[DocumentRecord], make_record: MakeRecord
) -> None:
    view = bank.apply("default", 1, (), records)
    with pytest.raises(ValueError, match="zip"):
        bank.apply("default", 2, ["d0"], [make_record("x")], [[None, None]])
    other = MemoryBank(SelectionConfig(d_key=3))
    with pytest.raises(ValueError, match=r"'d0'.*\(8,\), not \(3,\)"):
        other.apply("default", 1, (), records)
    assert bank.view("default") is view
    assert other.view("default").entries == ()


def test_the_score_is_the_fusion_of_cosine_and_bm25(
    bank: MemoryBank, records: list[DocumentRecord]
) -> None:
    view = bank.apply("default", 1, (), records)
    everything = ask(bank, view, top_k=0)
    words = {s.entry.document_id: s.score / 0.5 for s in ask(bank, view, top_k=0, mode="bm25")}
    for selected in everything:
        cosine = float(selected.entry.stored.selection_key_float() @ query_of(1))
        expected = 20.0 * cosine + 0.5 * words[selected.entry.document_id]
        assert selected.score == pytest.approx(expected, abs=1e-5)
        assert selected.cosine == pytest.approx(cosine, abs=1e-6)
    assert [s.score for s in everything] == sorted((s.score for s in everything), reverse=True)
    assert sum(2.718281828459045**s.log_prior for s in everything) == pytest.approx(1.0)


def test_top_k_is_the_head_of_the_whole_ranking_with_its_own_prior(
    bank: MemoryBank, records: list[DocumentRecord]
) -> None:
    view = bank.apply("default", 1, (), records)
    everything, best = ask(bank, view, top_k=0), ask(bank, view, top_k=2)
    assert [s.entry for s in best] == [s.entry for s in everything[:2]]
    expected = torch.tensor([s.score for s in best]).log_softmax(0).tolist()
    assert [s.log_prior for s in best] == pytest.approx(expected)


def test_top_k_beyond_the_candidates_is_given(
    bank: MemoryBank, records: list[DocumentRecord]
) -> None:
    view = bank.apply("default", 1, (), records)
    assert len(ask(bank, view, text="", top_k=5)) == 5
    assert len(ask(bank, view, text="", top_k=50)) == 5


def test_bm25_finds_only_shared_words(bank: MemoryBank, records: list[DocumentRecord]) -> None:
    view = bank.apply("default", 1, (), records)
    found = ask(bank, view, text="who barked?", top_k=4, mode="bm25")
    assert [s.entry.document_id for s in found] == ["d1"]
    assert found[0].log_prior == 0.0
    assert found[0].cosine == 0.0
    assert ask(bank, view, text="xylophone", top_k=4, mode="bm25") == []


def test_bm25_reads_a_chunk_to_its_end(bank: MemoryBank, make_record: MakeRecord) -> None:
    # Defect 9: an index of the first words alone is text cut in silence.
    long = make_record("long", "filler " * 2000 + "xylophone")
    view = bank.apply("default", 1, (), [make_record("short", "no word of it"), long])
    found = ask(bank, view, text="xylophone", mode="bm25")
    assert [s.entry.document_id for s in found] == ["long"]


def test_bm25_ranks_although_its_share_of_the_fusion_is_zero(
    records: list[DocumentRecord],
) -> None:
    bank = MemoryBank(SelectionConfig(d_key=D_KEY, bm25_scale=0.0))
    view = bank.apply("default", 1, (), records)
    assert ask(bank, view, text="barked cat", top_k=1, mode="bm25")[0].entry.document_id == "d1"


def test_equal_documents_stand_in_order_of_writing(
    bank: MemoryBank, make_record: MakeRecord
) -> None:
    view = bank.apply("default", 1, (), [make_record(name, "same words") for name in "cabd"])
    found = ask(bank, view, text="words", top_k=3)
    assert [s.entry.document_id for s in found] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"now": 49.0}, {"plain", "expires", "published", "tagged"}),
        ({"now": 50.0}, {"plain", "published", "tagged"}),
        ({"now": 0.0, "as_of": 29.0}, {"plain", "expires", "tagged"}),
        ({"now": 0.0, "as_of": 30.0}, {"plain", "expires", "published", "tagged"}),
        ({"filter": {"k": 1}}, {"tagged"}),
        ({"filter": {"k": True}}, set()),
    ],
)
@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("mode", ["fused", "bm25"])
def test_what_takes_no_part_leaves_room_for_the_rest(
    bank: MemoryBank, make_record: MakeRecord, changes: dict[str, Any], expected: set[str],
    top_k: int, mode: str,
) -> None:  # fmt: skip
    text = "cat"
    view = bank.apply(
        "default", 1, (),
        [
            make_record("expires", text, expires_at=50.0),
            make_record("published", text, published_at=30.0),
            make_record("tagged", text, metadata={"k": 1}),
            make_record("plain", text), make_record("z", "other", expires_at=0.0),
        ],
    )  # fmt: skip
    found = ask(bank, view, **({"top_k": top_k, "mode": mode} | changes))
    assert {s.entry.document_id for s in found} == expected


def test_excluded_chunks_do_not_use_up_candidates(make_record: MakeRecord) -> None:
    bank = MemoryBank(SelectionConfig(d_key=D_KEY, num_candidates=1))
    gone = [make_record(f"gone{n}", "cat cat", expires_at=1.0) for n in range(5)]
    view = bank.apply("default", 1, (), [*gone, make_record("here", "cat on a long road")])
    assert [s.entry.document_id for s in ask(bank, view, top_k=1)] == ["here"]


def test_namespaces_never_meet(bank: MemoryBank, make_record: MakeRecord) -> None:
    one = bank.apply("one", 1, (), [make_record("a", "canary one cat", namespace="one")])
    before = outcome(ask(bank, one, top_k=0))
    two = bank.apply("two", 1, (), [make_record("a", "canary two cat", namespace="two")])
    assert outcome(ask(bank, one, top_k=0)) == before
    # Defect 12: each name has its own view, and a name that was never written has none's.
    assert [bank.view(name) for name in ("one", "two")] == [one, two]
    assert bank.view("three").entries == ()
    assert [s.entry.text for s in ask(bank, two, text="canary one", top_k=0)] == ["canary two cat"]
    bank.apply("two", 2, ["a"], [])
    assert ids_of(bank.view("one")) == ["a"]


def test_of_an_emptied_namespace_its_version_alone_is_kept(make_record: MakeRecord) -> None:
    # One for each session or test run, made and deleted, took 70 kB for good.
    made, closed = list[str](), list[str]()

    def make_index(namespace: str) -> Any:
        made.append(namespace)
        return SimpleNamespace(follow=lambda view: None, close=lambda: closed.append(namespace))

    bank = MemoryBank(SELECTION, make_index=make_index)
    before = bank.apply("one", 4, (), [make_record("a", namespace="one")])
    emptied = bank.apply("one", 5, ["a"], ())
    assert bank.view("one") is emptied
    assert (emptied.entries, emptied.version, bank.version("one")) == ((), 5, 5)
    assert (bank.namespaces(), closed) == (("one",), ["one"])
    assert ids_of(before) == ["a"]
    again = bank.apply("one", 6, (), [make_record("b", namespace="one")])
    assert (ids_of(again), bank.version("one"), bank.namespaces()) == (["b"], 6, ("one",))
    assert made == ["one", "one"]
    assert [s.entry.document_id for s in ask(bank, again, text="text", top_k=0)] == ["b"]


@settings(max_examples=25, deadline=None)
@given(
    is_removed=st.lists(st.booleans(), min_size=2, max_size=12).filter(any),
    text=st.sampled_from(["cat dog", "rain", "word3 word7", ""]),
)
def test_after_a_delete_the_bank_is_one_that_never_held_the_document(
    make_record: MakeRecord, is_removed: list[bool], text: str
) -> None:
    records = [
        make_record(str(number), f"{TEXTS[number % 5]} word{number}")
        for number in range(len(is_removed))
    ]
    removed = [r.id for r, gone in zip(records, is_removed, strict=True) if gone]
    deleted, never = MemoryBank(SELECTION), MemoryBank(SELECTION)
    for record in records:
        deleted.apply("default", 1, (), [record])
    left = deleted.apply("default", 2, removed, [])
    kept = [record for record in records if record.id not in removed]
    other = never.apply("default", 2, (), kept)
    assert ids_of(left) == ids_of(other)
    assert torch.equal(left.selection_keys, other.selection_keys)
    assert (left.num_documents, left.num_bytes) == (other.num_documents, other.num_bytes)
    for top_k in (0, 1, 3):
        assert outcome(ask(deleted, left, text, top_k=top_k)) == outcome(
            ask(never, other, text, top_k=top_k)
        )


@pytest.mark.parametrize("mode", ["fused", "bm25"])
@pytest.mark.parametrize("top_k", [0, 1, 4])
def test_a_batch_selects_what_each_question_would_alone(
    make_record: MakeRecord, top_k: int, mode: Any
) -> None:
    bank = MemoryBank(SELECTION)
    texts = [f"{TEXTS[number % 5]} word{number % 17}" for number in range(60)]
    view = bank.apply("default", 1, (), [make_record(str(n), t) for n, t in enumerate(texts)])
    questions = ["cat word3", "rain", "", "dog word11 cat", "word5"]
    queries = torch.stack([query_of(number) for number in range(5)])
    together = bank.select_batch(
        view, queries=queries, texts=questions, top_k=top_k, filter={}, as_of=None, now=0.0,
        mode=mode,
    )  # fmt: skip
    alone = [
        ask(bank, view, text, query=query, top_k=top_k, mode=mode)
        for text, query in zip(questions, queries, strict=True)
    ]
    for batched, single in zip(together, alone, strict=True):
        assert [s.entry for s in batched] == [s.entry for s in single]
        assert [s.score for s in batched] == pytest.approx([s.score for s in single], abs=1e-6)
        priors = [s.log_prior for s in single]
        assert [s.log_prior for s in batched] == pytest.approx(priors, abs=1e-6)


def test_a_live_bank_equals_one_loaded_from_the_store(
    tmp_path: Path, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    live = MemoryBank(SELECTION)
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as store:
        writes = [
            [make_record(f"d{number}", text) for number, text in enumerate(TEXTS)],
            [make_record("d1", "dog again"), make_record("x", "cat one"), make_record("x", "cat")],
        ]
        for batch in writes:
            live.apply("default", store.put("default", batch), (), batch)
        removed, version = store.delete("default", ["d0", "unknown"])
        view = live.apply("default", version, removed, [])
    loaded = MemoryBank(SELECTION)
    with closing(SqliteStore(tmp_path, fingerprint=fingerprint)) as store:
        mirrored = loaded.apply(
            "default", store.version("default"), (), list(store.scan("default"))
        )
    assert ids_of(mirrored) == ids_of(view) == ["d2", "d3", "d4", "d1", "x"]
    assert mirrored.version == view.version
    assert outcome(ask(loaded, mirrored, top_k=0)) == outcome(ask(live, view, top_k=0))


def test_single_inserts_cost_about_the_same_late_as_early(make_record: MakeRecord) -> None:
    bank, template = MemoryBank(SELECTION), make_record("t", "some few words of text")

    def insert(first: int, count: int) -> float:
        started = time.process_time()
        for number in range(first, first + count):
            bank.apply("default", number, (), [_renamed(template, str(number))])
        return time.process_time() - started

    insert(0, 100)
    early, late = insert(100, 300), insert(1800, 300)
    assert late < 6 * early


def _renamed(record: DocumentRecord, document_id: str) -> DocumentRecord:
    return replace(record, id=document_id)
