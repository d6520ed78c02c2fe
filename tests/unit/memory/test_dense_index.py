"""Every kind of index against looking at every key: any writes, filters, ties, restarts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mac_core.config import IndexConfig, SelectionConfig
from mac_core.errors import ConfigurationError
from mac_core.memory import faiss_kinds
from mac_core.memory.bank import BankView, MemoryBank, Selected
from mac_core.memory.dense_index import nearest
from mac_core.memory.faiss_index import FaissIndex, index_maker, start_thread
from mac_core.memory.records import DocumentRecord

MakeRecord = Callable[..., DocumentRecord]
Kind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[Kind, ...] = ("flat", "ivf", "hnsw")
D_KEY = 8
NUM_CANDIDATES = 3
SELECTION = SelectionConfig(d_key=D_KEY, top_k=2, num_candidates=NUM_CANDIDATES)
FILTERED: dict[str, Any] = {"filter": {"odd": True}}


@dataclass
class Indexed:
    """A bank, and the index of its one namespace."""

    bank: MemoryBank
    indexes: dict[str, FaissIndex]

    @property
    def index(self) -> FaissIndex:
        return self.indexes["default"]


def indexed(kind: Kind, *, start: Any = None, lazy_chunks: int = 4, **changes: Any) -> Indexed:
    """Built from the fourth chunk on, at once; `probes` 64 and `ef_search` 64 miss nothing here."""
    config = IndexConfig(kind=kind, **({"min_chunks": 4, "probes": 64, "ef_search": 64} | changes))
    made: dict[str, FaissIndex] = {}

    def make(namespace: str) -> FaissIndex:
        made[namespace] = FaissIndex(
            config, namespace=namespace, start=start or (lambda work: work())
        )
        return made[namespace]

    return Indexed(MemoryBank(SELECTION, make_index=make, lazy_chunks=lazy_chunks), made)


def plain() -> MemoryBank:
    return MemoryBank(SELECTION)


def query_of(seed: int) -> Tensor:
    return F.normalize(torch.randn(D_KEY, generator=torch.Generator().manual_seed(seed)), dim=0)


def ask(bank: MemoryBank, view: BankView, seed: int = 1, **changes: Any) -> list[Selected]:
    arguments: dict[str, Any] = {
        "query": query_of(seed), "text": "", "top_k": 2, "filter": {}, "as_of": None, "now": 1000.0,
    }  # fmt: skip
    return bank.select(view, **(arguments | changes))


def outcome(selected: list[Selected]) -> list[tuple[str, int, float, float]]:
    return [(s.entry.document_id, s.entry.chunk, s.score, s.log_prior) for s in selected]


def numbered(make_record: MakeRecord, numbers: range, **changes: Any) -> list[DocumentRecord]:
    return [
        make_record(f"d{n}", f"text {n}", metadata={"odd": n % 2 == 1}, **changes) for n in numbers
    ]


def proposed_ids(made: Indexed, view: BankView) -> list[list[str]]:
    proposal = made.index.propose(torch.stack([query_of(seed) for seed in range(30)]), fetch=9)
    places = [torch.searchsorted(view.rows, rows).tolist() for rows in proposal.rows]
    return [[view.entries[place].document_id for place in row] for row in places]


WRITES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 19), max_size=6),  # removed
        st.lists(st.tuples(st.integers(0, 19), st.integers(0, 5)), max_size=8),  # id, which text
    ),
    min_size=1,
    max_size=10,
)
QUESTIONS = st.tuples(
    st.integers(0, 50), st.sampled_from([{}, FILTERED, {"as_of": 50.0}, {"now": 2000.0}])
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(writes=WRITES, questions=st.lists(QUESTIONS, min_size=1, max_size=3))
def test_any_writes_leave_the_selection_of_a_bank_without_an_index(
    make_record: MakeRecord, kind: Kind, writes: Any, questions: Any
) -> None:
    made, bank = indexed(kind), plain()
    for version, (removed, added) in enumerate(writes, start=1):
        records = [
            make_record(
                f"d{number}", f"text {text}", metadata={"odd": number % 2 == 1},
                published_at=10.0 * number, expires_at=[None, 1500.0][text % 2],
            )
            for number, text in added
        ]  # fmt: skip
        gone = [f"d{number}" for number in removed]
        view = made.bank.apply("default", version, gone, records)
        expected = bank.apply("default", version, gone, records)
        for seed, changes in questions:
            assert outcome(ask(made.bank, view, seed, **changes)) == outcome(
                ask(bank, expected, seed, **changes)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_document_is_never_selected_and_the_rest_is_as_if_it_never_was(
    make_record: MakeRecord, kind: Kind
) -> None:
    made, never = indexed(kind, max_removed_share=0.9), indexed(kind)
    records = numbered(make_record, range(40))
    made.bank.apply("default", 1, (), records)
    view = made.bank.apply("default", 2, [r.id for r in records[:20]], [])
    other = never.bank.apply("default", 1, (), records[20:])
    assert made.index.num_keys == 40
    for seed in range(30):
        assert outcome(ask(made.bank, view, seed)) == outcome(ask(never.bank, other, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_removed_build_it_anew_without_a_trace(
    make_record: MakeRecord, kind: Kind
) -> None:
    narrow: dict[str, Any] = {"probes": 1, "ef_search": 1, "max_removed_share": 0.2}
    made, never = indexed(kind, **narrow), indexed(kind, **narrow)
    records = numbered(make_record, range(200))
    made.bank.apply("default", 1, (), records)
    view = made.bank.apply("default", 2, [r.id for r in records[::3]], [])
    other = never.bank.apply("default", 1, (), [r for r in records if r not in records[::3]])
    assert made.index.num_keys == never.index.num_keys == 133
    assert proposed_ids(made, view) == proposed_ids(never, other)


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_or_at_once_is_the_same_index(make_record: MakeRecord, kind: Kind) -> None:
    narrow: dict[str, Any] = {"probes": 1, "ef_search": 1, "min_chunks": 16}
    slowly, at_once = indexed(kind, **narrow), indexed(kind, **narrow)
    records = numbered(make_record, range(150))
    for version, record in enumerate(records, start=1):
        slowly.bank.apply("default", version, (), [record])
    at_once.bank.apply("default", 150, (), records)
    queries = torch.stack([query_of(seed) for seed in range(30)])
    found, expected = [b.index.propose(queries, fetch=9) for b in (slowly, at_once)]
    assert [rows.tolist() for rows in found.rows] == [rows.tolist() for rows in expected.rows]


@pytest.mark.parametrize("kind", KINDS)
def test_an_updated_document_is_there_once(make_record: MakeRecord, kind: Kind) -> None:
    made = indexed(kind, max_removed_share=0.9)
    made.bank.apply("default", 1, (), numbered(make_record, range(8)))
    for version in range(2, 6):
        view = made.bank.apply("default", version, (), [make_record("d3", "text 3")])
    found = ask(made.bank, view, top_k=8)
    assert sorted(s.entry.document_id for s in found) == [f"d{n}" for n in range(8)]


def test_ties_beyond_what_was_fetched_are_all_candidates(make_record: MakeRecord) -> None:
    made, bank = indexed("flat"), plain()
    records = [make_record(f"d{n}", "the same text") for n in range(300)]
    view = made.bank.apply("default", 1, (), records)
    query = view.selection_keys[:1]
    (rows,) = nearest(view, query, view.alive, limit=3, index=made.index)
    assert rows.tolist() == list(range(300))
    expected = bank.apply("default", 1, (), records)
    assert outcome(ask(made.bank, view, query=query[0])) == outcome(
        ask(bank, expected, query=query[0])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_little_looks_at_every_key_that_is_left(
    make_record: MakeRecord, kind: Kind
) -> None:
    made = indexed(kind)
    records = [make_record(f"d{n}", f"t {n}", metadata={"rare": n == 77}) for n in range(300)]
    view = made.bank.apply("default", 1, (), records)
    (found,) = ask(made.bank, view, filter={"rare": True})
    assert found.entry.document_id == "d77"


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_view_is_read_without_the_index(make_record: MakeRecord, kind: Kind) -> None:
    made = indexed(kind)
    view = made.bank.apply("default", 1, (), numbered(make_record, range(30)))
    before = outcome(ask(made.bank, view))
    made.bank.apply(
        "default", 2, [f"d{n}" for n in range(30)], numbered(make_record, range(40, 90))
    )
    assert outcome(ask(made.bank, view)) == before


def test_a_small_bank_has_no_index(make_record: MakeRecord) -> None:
    made = indexed("hnsw", min_chunks=10)
    made.bank.apply("default", 1, (), numbered(make_record, range(9)))
    assert made.index.num_keys == 0
    assert made.index.propose(query_of(1)[None], fetch=3) is None
    made.bank.apply("default", 2, (), numbered(make_record, range(9, 10)))
    assert made.index.num_keys == 10


def test_the_cells_of_ivf_are_found_anew_when_the_bank_is_four_times_larger() -> None:
    config = IndexConfig(kind="ivf", min_chunks=100)
    sizes = (100, 399, 400, 1599, 1600)
    assert [faiss_kinds.num_training_keys(config, size) for size in sizes] == [
        *(100, 100, 400, 400, 1600)
    ]


@dataclass
class HeldBuild:
    """A build in a thread that waits to be let go."""

    go: Event

    def __call__(self, work: Callable[[], None]) -> Thread:
        return start_thread(lambda: (self.go.wait(20), work())[1])


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_is_built_every_key_is_looked_at_and_then_nothing_is_missing(
    make_record: MakeRecord, kind: Kind
) -> None:
    build = HeldBuild(Event())
    made, bank = indexed(kind, start=build), plain()
    records = numbered(make_record, range(60))
    for version, first in enumerate(range(0, 60, 20), start=1):
        view = made.bank.apply("default", version, (), records[first : first + 20])
        expected = bank.apply("default", version, (), records[first : first + 20])
    view = made.bank.apply("default", 4, ["d5", "d45"], [])
    expected = bank.apply("default", 4, ["d5", "d45"], [])
    assert made.index.num_keys == 0
    assert outcome(ask(made.bank, view)) == outcome(ask(bank, expected))
    build.go.set()
    made.index.wait()
    assert made.index.num_keys == 20
    for seed in range(20):
        assert outcome(ask(made.bank, view, seed)) == outcome(ask(bank, expected, seed))


def test_a_build_that_fails_is_tried_once(
    make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = indexed("flat")
    builds: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        builds.append(1)
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(faiss_kinds, "build", fail)
    made.bank.apply("default", 1, (), numbered(make_record, range(9)))
    view = made.bank.apply("default", 2, (), numbered(make_record, range(9, 12)))
    assert len(builds) == 1
    assert "no memory for it" in caplog.text
    assert len(ask(made.bank, view)) == 2


def test_without_faiss_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ConfigurationError, match=r"mac-server\[faiss\]"):
        index_maker(IndexConfig(kind="ivf"))
    assert index_maker(IndexConfig(kind="exact"))("default") is None


# ---- kept for the next start


def saved(make_record: MakeRecord, directory: Path, kind: Kind = "ivf", count: int = 40) -> Indexed:
    made = indexed(kind, directory=str(directory))
    made.bank.apply("default", 1, (), numbered(make_record, range(count)))
    made.bank.close()
    return made


def reopened(
    make_record: MakeRecord, directory: Path, monkeypatch: pytest.MonkeyPatch,
    kind: Kind = "ivf", numbers: range = range(40), **changes: Any,
) -> bool:  # fmt: skip
    """Whether a bank of the documents `numbers` took its index from the directory."""
    builds: list[int] = []
    build = faiss_kinds.build
    monkeypatch.setattr(faiss_kinds, "build", lambda *a, **k: (builds.append(1), build(*a, **k))[1])
    made = indexed(kind, **({"directory": str(directory)} | changes))
    made.bank.apply("default", 1, (), numbered(make_record, numbers))
    assert made.index.num_keys == len(numbers) or not builds
    return not builds


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_start_takes_the_saved_index(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    first = saved(make_record, tmp_path, kind)
    assert reopened(make_record, tmp_path, monkeypatch, kind)
    second = indexed(kind, directory=str(tmp_path))
    view = second.bank.apply("default", 1, (), numbered(make_record, range(40)))
    for seed in range(10):
        assert outcome(ask(second.bank, view, seed)) == outcome(
            ask(first.bank, first.bank.view("default"), seed)
        )


def test_a_bank_that_has_grown_since_takes_it_and_adds_the_rest(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(make_record, tmp_path)
    assert reopened(make_record, tmp_path, monkeypatch, numbers=range(45))


@pytest.mark.parametrize(
    "changes",
    [
        {"numbers": range(39)},  # one less
        {"numbers": range(1, 41)},  # another first one
        {"kind": "hnsw"},
        {"min_chunks": 5},
    ],
)
def test_an_index_of_another_bank_is_discarded(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    saved(make_record, tmp_path)
    assert not reopened(make_record, tmp_path, monkeypatch, **changes)
    assert "discarded" in caplog.text
    monkeypatch.undo()
    assert reopened(make_record, tmp_path, monkeypatch, **changes)  # written over


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [_flip, _cut, Path.unlink])
def test_a_harmed_file_is_discarded_before_faiss_reads_it(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
) -> None:  # fmt: skip
    saved(make_record, tmp_path)
    (data,) = tmp_path.glob("*.faiss")
    harm(data)
    assert not reopened(make_record, tmp_path, monkeypatch)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"num_keys": "many"}', '{"num_keys": -1}'])
def test_a_strange_header_is_discarded(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    saved(make_record, tmp_path)
    (header,) = tmp_path.glob("*.json")
    header.write_text(content)
    assert not reopened(make_record, tmp_path, monkeypatch)


def test_another_namespaces_file_is_discarded(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(make_record, tmp_path)
    (header,) = tmp_path.glob("*.json")
    header.write_text(json.dumps(json.loads(header.read_text()) | {"namespace": "other"}))
    assert not reopened(make_record, tmp_path, monkeypatch)


def test_an_index_with_a_removed_document_in_it_is_not_saved_over(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    made = indexed("flat", directory=str(tmp_path), max_removed_share=0.9)
    made.bank.apply("default", 1, (), numbered(make_record, range(10)))
    (header,) = tmp_path.glob("*.json")
    before = header.read_text()
    made.bank.apply("default", 2, ["d0"], numbered(make_record, range(10, 20)))
    made.bank.close()
    assert header.read_text() == before


def test_what_was_added_is_saved_at_the_end(make_record: MakeRecord, tmp_path: Path) -> None:
    made = indexed("flat", directory=str(tmp_path))
    made.bank.apply("default", 1, (), numbered(make_record, range(10)))
    made.bank.apply("default", 2, (), numbered(make_record, range(10, 20)))
    made.bank.close()
    (header,) = tmp_path.glob("*.json")
    assert json.loads(header.read_text())["num_keys"] == 20


def test_a_directory_that_cannot_be_written_costs_only_the_fast_start(
    make_record: MakeRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    made = indexed("flat", directory=str(tmp_path / "file"))
    view = made.bank.apply("default", 1, (), numbered(make_record, range(10)))
    assert "could not be saved" in caplog.text
    assert len(ask(made.bank, view)) == 2


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="probes=0"):
        replace(IndexConfig(), probes=0)
    with pytest.raises(ValueError, match="max_removed_share=1.0"):
        replace(IndexConfig(), max_removed_share=1.0)
