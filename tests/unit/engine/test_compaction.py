"""A store made smaller: what stays, what a kill leaves behind, and what a deletion does."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.config import EngineConfig, SelectionConfig
from mac_core.engine import Engine, compaction
from mac_core.engine.compaction import CompactionReport, compact
from mac_core.engine.maintenance import verify_bank
from mac_core.engine.mirror import Mirror
from mac_core.engine.offline import amortize_chunks, cut_document
from mac_core.engine.ports import SilentObserver
from mac_core.engine.reindex import reindex
from mac_core.errors import CorruptRecord, DocumentNotFound, InvalidInput
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.codebook_records import PREFIX, own_ids, stored_codebooks
from mac_core.memory.compaction import (
    Compaction,
    compact_record,
    is_compacted,
    parse_compaction,
)
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.memory.records import DocumentRecord, content_hash
from mac_core.memory.sqlite_store import DATABASE
from mac_core.memory.store import Store
from mac_core.types import Document, Modulation, Question
from tests.unit.engine.conftest import outcome
from tests.unit.engine.fakes import D_KEY, FINGERPRINT, WAIT_S, FakeModel
from tests.unit.engine.test_replicas import same

WIDTH = 64
ALONE = ["bits:8", "average:16@8", "merge:16@8", "prune:16@8", "prune-random:16@8", "average:32@4"]
EVERY = [*ALONE, "codebook:32"]
NAMES = [f"d{i}" for i in range(7)]


class TokenModel(FakeModel):
    """As the bundled model: a slot for each framed token."""

    def _modulation(self, chunk: str) -> Modulation:
        made = super()._modulation(chunk)
        framed = self.layout.document(made.token_ids.tolist())
        rows = [
            torch.randn(WIDTH, generator=torch.Generator().manual_seed(token)) for token in framed
        ]
        return replace(made, slots=torch.stack(rows) + 1)


def text_of(name: str) -> str:
    number = name[1:]
    long = " ".join(f"Word {i} of {number} is here." for i in range(9))
    return f"The code of vault {number} is Alpha{number}. {long}"


def record_of(model: FakeModel, name: str) -> DocumentRecord:
    text = text_of(name)
    chunks = cut_document(model, text)
    return DocumentRecord(
        id=name, namespace="default", title="t", text=text, metadata={"k": 1}, published_at=3.0,
        expires_at=None, created_at=5.0, updated_at=6.0,
        content_hash=content_hash(Document(text=text)),
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        chunks=tuple(amortize_chunks(model, chunks, batch_size=2, bits=32)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TokenModel:
    return TokenModel()


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    return url_of_directory(tmp_path / "bank")


@pytest.fixture
def opened() -> Iterator[Callable[[str], Store]]:
    """Opens stores; all are closed at the end."""
    stores: list[Store] = []

    def open_one(url: str) -> Store:
        stores.append(open_store(url, fingerprint=FINGERPRINT))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def write(store: Store, model: FakeModel, names: Sequence[str] = NAMES) -> list[DocumentRecord]:
    written = [record_of(model, name) for name in names]
    for record in written:  # a version each
        store.put("default", [record])
    return written


def made_smaller(store: Store, model: FakeModel, setting: str, **options: Any) -> CompactionReport:
    (report,) = compact(store, model, parse_compaction(setting), **options)
    return report


def documents(store: Store) -> list[DocumentRecord]:
    return [record for record in store.scan("default") if not record.id.startswith(PREFIX)]


def mirrored(store: Store, model: FakeModel) -> BankView:
    bank = MemoryBank(SelectionConfig(d_key=D_KEY))
    Mirror(model=model, store=store, bank=bank, observer=SilentObserver()).load()
    return bank.view("default")


def bytes_of(records: Sequence[DocumentRecord]) -> list[tuple[object, ...]]:
    return [
        (record.id, part.chunk, part.stored.encoding, name, tensor.tolist())
        for record in records
        for part in record.chunks
        for name, tensor in part.stored.tensors()
    ]


@pytest.mark.parametrize("setting", EVERY)
def test_documents_get_smaller_and_are_otherwise_what_they_were(
    url: str, opened: Any, model: TokenModel, setting: str
) -> None:
    store = opened(url)
    before = write(store, model)
    report = made_smaller(store, model, setting)
    after = documents(store)
    assert report.num_rewritten == report.num_documents == len(NAMES)
    assert report.bytes_before == sum(record.num_bytes for record in before)
    assert report.bytes_after == sum(record.num_bytes for record in after)
    assert report.bytes_after < report.bytes_before / 3
    kept = ("id", "text", "title", "metadata", "published_at", "created_at", "updated_at",
            "content_hash", "num_tokens")  # fmt: skip
    assert [[getattr(r, k) for k in kept] for r in after] == [
        [getattr(r, k) for k in kept] for r in before
    ]
    for old, new in zip(before, after, strict=True):
        assert [part.chunk for part in new.chunks] == [part.chunk for part in old.chunks]


@pytest.mark.parametrize("setting", EVERY)
def test_every_token_keeps_its_slot_its_id_and_its_place(
    url: str, opened: Any, model: TokenModel, setting: str
) -> None:
    store = opened(url)
    before = write(store, model, NAMES[:2])
    made_smaller(store, model, setting)
    entries = mirrored(store, model).entries
    parts = [part for record in before for part in record.chunks]
    for entry, part in zip(entries, parts, strict=True):
        old, new = part.stored.unpack(), entry.stored.unpack()
        assert torch.equal(new.token_ids, old.token_ids)
        assert torch.equal(new.token_offsets, old.token_offsets)
        assert torch.equal(new.selection_key, old.selection_key)
        assert new.slots.shape == old.slots.shape
        spelt = [entry.text[start:end].lower() for start, end in new.token_offsets.tolist()]
        assert spelt == [model.tokenizer.decode([i]) for i in new.token_ids.tolist()]


@pytest.mark.parametrize("setting", EVERY)
def test_the_second_time_nothing_is_rewritten(
    url: str, opened: Any, model: TokenModel, setting: str
) -> None:
    store = opened(url)
    write(store, model)
    first = made_smaller(store, model, setting)
    version = store.version("default")
    again = made_smaller(store, model, setting)
    assert (again.num_rewritten, store.version("default")) == (0, version)
    assert again.bytes_before == again.bytes_after == first.bytes_after


@pytest.mark.parametrize("setting", EVERY)
def test_a_dry_run_says_what_would_come_of_it_and_writes_nothing(
    url: str, opened: Any, model: TokenModel, setting: str
) -> None:
    store = opened(url)
    write(store, model)
    version = store.version("default")
    told = made_smaller(store, model, setting, is_dry_run=True)
    assert store.version("default") == version
    assert made_smaller(store, model, setting) == told
    assert "would be" in told.sentence(is_dry_run=True)


@pytest.mark.parametrize("setting", ["merge:16@8", "codebook:32"])
def test_a_run_that_was_cut_short_goes_on_and_ends_as_one_that_was_not(
    url: str, opened: Any, model: TokenModel, tmp_path: Path, setting: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(compaction, "DOCUMENTS_AT_ONCE", 2)
    store, whole = opened(url), opened(url_of_directory(tmp_path / "whole"))
    write(store, model)
    write(whole, model)
    made_smaller(whole, model, setting)

    class Killed(BaseException): ...

    def die(_: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        made_smaller(store, model, setting, advance=die)
    done = [r.id for r in documents(store) if all(is_compacted(p.stored) for p in r.chunks)]
    assert done == NAMES[:2]
    assert made_smaller(store, model, setting).num_rewritten == len(NAMES) - 2
    assert bytes_of(documents(store)) == bytes_of(documents(whole))


CHILD = """
import os, sys
from mac_core.engine import compaction
from mac_core.memory.compaction import parse_compaction
from mac_core.memory.opening import open_store
from tests.unit.engine.fakes import FINGERPRINT
from tests.unit.engine.test_compaction import TokenModel

compaction.DOCUMENTS_AT_ONCE = 2
store = open_store(sys.argv[1], fingerprint=FINGERPRINT)
compaction.compact(
    store, TokenModel(), parse_compaction("merge:16@8"), advance=lambda amount: os._exit(9)
)
"""


def test_a_process_that_dies_between_batches_leaves_a_store_that_opens_and_goes_on(
    opened: Any, model: TokenModel, tmp_path: Path
) -> None:
    url = url_of_directory(tmp_path / "bank")
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
    died = subprocess.run([sys.executable, "-c", CHILD, url], check=False, timeout=120)
    assert died.returncode == 9
    store = opened(url)
    assert sorted(record.id for record in documents(store)) == NAMES
    assert made_smaller(store, model, "merge:16@8").num_rewritten == len(NAMES) - 2
    assert [record.id for record in documents(store)] == NAMES


@pytest.mark.parametrize("setting", ["merge:16@8", "codebook:32"])
def test_a_corrupt_record_stays_as_it_is_and_the_others_are_compacted(
    opened: Any, model: TokenModel, tmp_path: Path, setting: str
) -> None:
    url = url_of_directory(tmp_path / "bank")
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
    with closing(sqlite3.connect(tmp_path / "bank" / DATABASE)) as database:
        database.execute("UPDATE documents SET payload = zeroblob(9) WHERE id = ?", (NAMES[1],))
        database.commit()
    store = opened(url)
    report = made_smaller(store, model, setting)
    assert (report.num_rewritten, report.num_corrupt) == (len(NAMES) - 1, 1)
    assert "1 corrupt left as they are" in report.sentence(is_dry_run=False)
    with pytest.raises(CorruptRecord, match=f"'{NAMES[1]}'"):
        store.get("default", NAMES[1])


def test_only_the_named_namespaces_are_compacted(url: str, opened: Any, model: TokenModel) -> None:
    store = opened(url)
    write(store, model, NAMES[:1])
    store.put("other", [replace(record_of(model, "d0"), namespace="other")])
    reports = compact(store, model, parse_compaction("bits:8"), namespaces=["other"])
    assert [report.namespace for report in reports] == ["other"]
    assert documents(store)[0].chunks[0].stored.encoding.bits == 32
    with pytest.raises(InvalidInput, match="nowhere"):
        compact(store, model, parse_compaction("bits:8"), namespaces=["nowhere"])


def test_slots_that_are_not_tokens_have_no_words_to_prune_by(url: str, opened: Any) -> None:
    store, model = opened(url), FakeModel()
    write(store, model, NAMES[:1])
    with pytest.raises(InvalidInput, match="no words to prune by"):
        made_smaller(store, model, "prune:32@8")
    assert made_smaller(store, model, "average:8@8").num_rewritten == 1


def test_what_others_write_meanwhile_is_left_as_they_want_it(
    url: str, opened: Any, model: TokenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url)
    write(store, model)
    others = iter([lambda: store.delete("default", ["d1"]), lambda: write(store, model, ["d2"])])

    def meddled(record: DocumentRecord, *words: Any, **options: Any) -> DocumentRecord:
        next(others, lambda: None)()
        return compact_record(record, *words, **options)

    monkeypatch.setattr(compaction, "compact_record", meddled)
    made_smaller(store, model, "bits:8")
    found = {r.id: r.chunks[0].stored.encoding.bits for r in documents(store)}
    assert found == {name: 32 if name == "d2" else 4 for name in NAMES if name != "d1"}


# Deletion.


@pytest.mark.parametrize("setting", ALONE)
def test_a_deletion_after_compaction_leaves_the_bank_that_never_held_the_document(
    url: str, opened: Any, model: TokenModel, tmp_path: Path, setting: str
) -> None:
    store, never = opened(url), opened(url_of_directory(tmp_path / "never"))
    write(store, model)
    made_smaller(store, model, setting)
    store.delete("default", ["d3"])
    write(never, model, [name for name in NAMES if name != "d3"])
    made_smaller(never, model, setting)
    left, right = mirrored(store, model), mirrored(never, model)
    assert same(replace(left, version=0), replace(right, version=0))
    for mine, other in zip(left.entries, right.entries, strict=True):
        assert torch.equal(mine.stored.unpack().slots, other.stored.unpack().slots)


def test_a_codebook_outlives_the_documents_it_was_trained_on_until_the_bank_is_reindexed(
    url: str, opened: Any, model: TokenModel, tmp_path: Path
) -> None:
    never = opened(url_of_directory(tmp_path / "never"))
    write(never, model, [name for name in NAMES if name != "d3"])
    made_smaller(never, model, "codebook:32")
    (pure,) = stored_codebooks(never, "default")
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
        made_smaller(store, model, "codebook:32")
        others = [r for r in documents(store) if r.id != "d3"]
        store.delete("default", ["d3"])
        # Nothing of the document itself is left, and the others are untouched ...
        assert bytes_of(documents(store)) == bytes_of(others)
        # ... but their codebook is one that it had a part in.
        (tainted,) = stored_codebooks(store, "default")
        assert tainted.id != pure.id
    reindex(url, model, bits=32, everything=True)
    store = opened(url)
    assert own_ids(store, "default") == []
    made_smaller(store, model, "codebook:32")
    (again,) = stored_codebooks(store, "default")
    assert again.id == pure.id
    assert bytes_of(documents(store)) == bytes_of(documents(never))


def test_what_is_learned_later_is_coded_by_the_codebook_that_is_there(
    url: str, opened: Any, model: TokenModel
) -> None:
    store = opened(url)
    write(store, model, NAMES[:5])
    made_smaller(store, model, "codebook:32")
    write(store, model, NAMES[5:])
    assert made_smaller(store, model, "codebook:32").num_rewritten == 2
    assert len(own_ids(store, "default")) == 1


def test_documents_whose_codebook_is_gone_are_left_out_and_the_way_out_is_named(
    url: str, opened: Any, model: TokenModel, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(url)
    write(store, model, NAMES[:2])
    made_smaller(store, model, "codebook:32")
    store.delete("default", own_ids(store, "default"))
    write(store, model, NAMES[2:3])
    view = mirrored(store, model)
    assert {entry.document_id for entry in view.entries} == {NAMES[2]}
    assert "2 documents of namespace 'default' are left out" in caplog.text
    assert "mac bank reindex --all" in caplog.text


def test_a_corrupt_codebook_keeps_nothing_else_from_being_compacted(
    opened: Any, model: TokenModel, tmp_path: Path
) -> None:
    url = url_of_directory(tmp_path / "bank")
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model, NAMES[:3])
        made_smaller(store, model, "codebook:32")
        (book,) = own_ids(store, "default")
        write(store, model, NAMES[3:])
    with closing(sqlite3.connect(tmp_path / "bank" / DATABASE)) as database:
        database.execute("UPDATE documents SET payload = zeroblob(9) WHERE id = ?", (book,))
        database.commit()
    store = opened(url)
    report = made_smaller(store, model, "codebook:32")
    assert (report.num_rewritten, report.num_corrupt) == (len(NAMES) - 3, 1)
    assert {entry.document_id for entry in mirrored(store, model).entries} == set(NAMES[3:])


def test_a_corrupt_codebook_is_gone_when_all_of_the_bank_is_reindexed(
    opened: Any, model: TokenModel, tmp_path: Path
) -> None:
    """Nobody else could remove it: no caller can name it."""
    url = url_of_directory(tmp_path / "bank")
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
        made_smaller(store, model, "codebook:32")
    with closing(sqlite3.connect(tmp_path / "bank" / DATABASE)) as database:
        database.execute(
            "UPDATE documents SET payload = zeroblob(9) WHERE id LIKE ?", (f"{PREFIX}%",)
        )
        database.commit()
    assert reindex(url, model, bits=32, everything=True) == len(NAMES)
    assert verify_bank(url).corrupt == ()
    view = mirrored(opened(url), model)
    assert {entry.document_id for entry in view.entries} == set(NAMES)


def test_a_codebook_that_takes_more_than_it_saves_is_named(
    url: str, opened: Any, model: TokenModel
) -> None:
    store = opened(url)
    write(store, model, NAMES[:1])
    (report,) = compact(store, model, parse_compaction("codebook:32"), is_dry_run=True)
    assert report.codebook_bytes > report.bytes_before - report.bytes_after
    assert "the codebook takes more than it saves" in report.sentence(is_dry_run=True)
    assert "more than it saves" not in made_smaller(store, model, "merge:16@8").sentence(
        is_dry_run=False
    )


def test_a_codebook_that_was_there_already_costs_nothing_more(
    url: str, opened: Any, model: TokenModel
) -> None:
    store = opened(url)
    write(store, model, NAMES[:1])
    first = made_smaller(store, model, "codebook:32")
    write(store, model, NAMES[1:2])
    second = made_smaller(store, model, "codebook:32")
    assert (first.is_larger, second.is_larger) == (True, False)
    assert second.codebook_bytes > second.bytes_before - second.bytes_after > 0
    assert "that was there" in second.sentence(is_dry_run=False)
    assert "more than it saves" not in second.sentence(is_dry_run=False)


# Serving.


@pytest.fixture
def serve() -> Iterator[Callable[[str], Engine]]:
    engines: list[Engine] = []

    def start(url: str) -> Engine:
        engine = Engine(
            bundle=Path("fake"), store_directory=Path("nowhere"), store_url=url,
            config=EngineConfig(), load=TokenModel,
        )  # fmt: skip
        engines.append(engine)
        engine.start()
        assert engine.wait_until_ready(timeout_s=WAIT_S), engine.status().detail
        return engine

    yield start
    for engine in engines:
        engine.close(now=True)


def test_a_document_whose_codebook_is_gone_is_learned_anew_when_it_comes_again(
    url: str, model: TokenModel, serve: Any
) -> None:
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model, NAMES[:2])
        made_smaller(store, model, "codebook:32")
        store.delete("default", own_ids(store, "default"))
    engine = serve(url)
    assert engine.status().num_corrupt == 2
    question = Question(text="What is the code of vault 1?")
    assert outcome(engine.ask(question)).sources == ()
    document = Document(id="d1", text=text_of("d1"))
    assert [outcome(engine.add([document]))[0].status for _ in range(2)] == ["updated", "unchanged"]
    assert outcome(engine.ask(question)).text == "Alpha1"


@pytest.mark.parametrize("setting", EVERY)
def test_a_compacted_bank_answers_with_spans_that_spell_the_answer(
    url: str, model: TokenModel, serve: Any, setting: str
) -> None:
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
        made_smaller(store, model, setting)
    engine = serve(url)
    for number in (0, 6):
        asked = Question(text=f"What is the code of vault {number}?", mode="memory", top_k=1)
        answer = outcome(engine.ask(asked))
        assert answer.text == f"Alpha{number}"
        span = answer.sources[0].span
        assert span is not None
        assert text_of(f"d{number}")[span.start : span.end] == answer.text


def test_a_codebook_is_no_document_to_callers(url: str, model: TokenModel, serve: Any) -> None:
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
        made_smaller(store, model, "codebook:32")
        (name,) = own_ids(store, "default")
    engine = serve(url)
    page = outcome(engine.list_documents(namespace="default", limit=100, cursor=None, filter={}))
    assert sorted(info.id for info in page.documents) == NAMES
    assert engine.status().num_documents == len(NAMES)
    with pytest.raises(DocumentNotFound):
        outcome(engine.get_document(name, namespace="default"))
    assert outcome(engine.remove([name, "d0"])).removed_ids == ("d0",)
    assert outcome(engine.ask(Question(text="What is the code of vault 1?"))).text == "Alpha1"


def test_a_compacted_document_that_comes_again_is_unchanged(
    url: str, model: TokenModel, serve: Any
) -> None:
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        write(store, model)
        made_smaller(store, model, "merge:16@8")
    engine = serve(url)
    (result,) = outcome(engine.add([Document(id="d2", text=text_of("d2"))]))
    assert result.status == "unchanged"


def test_a_server_follows_a_compaction_by_another_process(
    redis_url: str, model: TokenModel, serve: Any, opened: Any
) -> None:
    store = opened(redis_url)
    write(store, model)
    engine = serve(redis_url)
    made_smaller(store, model, "codebook:32")
    question = Question(
        text="What is the code of vault 5?", mode="memory", min_version=store.version("default"),
        timeout_ms=WAIT_S * 1000,
    )  # fmt: skip
    assert outcome(engine.ask(question)).text == "Alpha5"
    assert same(engine._thread.serving.bank.view("default"), mirrored(store, model))
    assert engine.status().bank_bytes == sum(r.num_bytes for r in documents(store))


# Settings.


@pytest.mark.parametrize("setting", EVERY)
def test_a_setting_is_called_as_it_is_read(setting: str) -> None:
    assert parse_compaction(parse_compaction(setting).name) == parse_compaction(setting)


@pytest.mark.parametrize(
    "setting",
    ["shrink:4", "merge", "merge:x", "merge:0.5", "merge:nan", "merge:9999", "merge:4@3",
     "merge:4@x", "bits:3", ""],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(InvalidInput):
        parse_compaction(setting)


@pytest.mark.parametrize(("target", "bits"), [(1, 32), (2, 16), (4, 8), (8, 4), (16, 2)])
def test_a_target_of_bits_counts_from_float32(target: float, bits: int) -> None:
    assert Compaction(method="bits", target=target).value_bits == bits


@pytest.mark.parametrize(
    ("target", "bits", "expected"),
    [(4, 8, 100), (16, 8, 25), (16, 4, 50), (64, 4, 12), (999, 2, 2)],
)
def test_so_many_vectors_stay_that_the_target_is_met(
    target: float, bits: Any, expected: int
) -> None:
    made = Compaction(method="merge", target=target, bits=bits)
    assert made.num_vectors(100, bits=made.bits) == expected


@pytest.mark.parametrize(
    ("width", "target", "expected"), [(384, 16, 96), (384, 64, 24), (10, 16, 2)]
)
def test_a_codebooks_parts_divide_the_width(width: int, target: float, expected: int) -> None:
    assert Compaction(method="codebook", target=target).num_parts(width) == expected
