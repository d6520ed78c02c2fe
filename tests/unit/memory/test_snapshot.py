"""Snapshots: of each store into each store, whole or not at all, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.errors import (
    CorruptSnapshot,
    ForeignRecord,
    ForeignSnapshot,
    InvalidInput,
    NamespaceNotEmpty,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotTooNew,
    StoreError,
)
from mac_core.memory import snapshot_writing
from mac_core.memory.copying import RawRecord
from mac_core.memory.records import DocumentRecord
from mac_core.memory.snapshot_manifest import MANIFEST
from mac_core.memory.snapshot_reading import Snapshot, delete_snapshot, list_snapshots
from mac_core.memory.snapshot_writing import LOCK, PARTIAL, write_snapshot
from mac_core.memory.store import Store
from mac_core.types import SnapshotInfo
from tests.unit.memory.stores import FINGERPRINT, OpenStore, redis_at, sqlite_in

MakeRecord = Callable[..., DocumentRecord]
FIXTURE = Path(__file__).parents[2] / "data" / "snapshots"


@pytest.fixture(params=["sqlite", "redis"])
def open_target(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Another store than `store`; a Redis is emptied between the two by `take`."""
    if request.param == "redis":
        return redis_at(request.getfixturevalue("redis_url").replace("/0", "/1"))
    return sqlite_in(tmp_path / "target")


@pytest.fixture
def target(open_target: OpenStore) -> Iterator[Store]:
    opened = open_target()
    yield opened
    opened.close()


def fill(store: Store, make_record: MakeRecord) -> None:
    metadata = {"n": 1, "\u00e9": "\U0001f600"}
    store.put("one", [make_record(f"d{n}", namespace="one") for n in range(40)])
    store.put("one", [make_record("d3", "changed", namespace="one", parts=["cha", "nged"])])
    store.delete("one", ["d7"])
    store.put(
        "t{wo}",
        [make_record("a/b", namespace="t{wo}", title="T", metadata=metadata, published_at=5.5,
                     expires_at=4e9, created_at=3.0)],
    )  # fmt: skip
    store.create_namespace("empty")


def take(store: Store, parent: Path, name: str = "s") -> SnapshotInfo:
    with closing(store.source()) as source:
        return write_snapshot(source, parent, name)


def restore(parent: Path, store: Store, **options: Any) -> dict[str, int]:
    snapshot = Snapshot(parent, "s")
    snapshot.verify()
    return store.restore(snapshot.contents(FINGERPRINT), **options)


def told(record: DocumentRecord) -> tuple[object, ...]:
    """Everything but the version, which is the store's."""
    tensors = [
        (name, tensor.dtype, tensor.tolist())
        for part in record.chunks
        for name, tensor in part.stored.tensors()
    ]
    chunks = [part.chunk for part in record.chunks]
    return (replace(record.info(with_text=True), version=0), record.content_hash, chunks, tensors)


def contents(store: Store) -> dict[str, list[tuple[object, ...]]]:
    return {
        info.namespace: [told(record) for record in store.scan(info.namespace)]
        for info in store.namespaces()
    }


def test_what_is_restored_is_what_was_there_bit_for_bit(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    info = take(store, tmp_path / "snapshots")
    versions = restore(tmp_path / "snapshots", target)
    assert contents(target) == contents(store)
    assert versions == {"one": 4, "t{wo}": 2, "empty": 2}
    assert {name: target.version(name) for name in versions} == versions
    sizes = {i.namespace: (i.num_documents, i.num_chunks, i.num_bytes) for i in store.namespaces()}
    assert {
        i.namespace: (i.num_documents, i.num_chunks, i.num_bytes) for i in target.namespaces()
    } == sizes
    assert [(n.namespace, n.version, n.num_documents) for n in info.namespaces] == [
        ("empty", 1, 0), ("one", 3, 39), ("t{wo}", 1, 1),
    ]  # fmt: skip
    assert target.expired(5e9) == [("t{wo}", "a/b")]


def test_the_restored_store_goes_on(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    restore(tmp_path, target)
    assert target.put("one", [make_record("new", namespace="one")]) == 5
    assert [record.id for record in target.scan("one")][-2:] == ["d3", "new"]
    page = target.list("one", limit=1000)
    assert len(page.documents) == 40


def test_records_are_the_same_when_shards_are_many(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(snapshot_writing, "SHARD_BYTES", 5000)
    fill(store, make_record)
    take(store, tmp_path)
    assert len(list((tmp_path / "s").glob("shard-*"))) > 5
    restore(tmp_path, target)
    assert contents(target) == contents(store)


def test_a_snapshot_is_of_one_version_whatever_is_written_meanwhile(
    store: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    copied: list[int] = []

    def write(amount: int) -> None:
        """As another thread would, in the middle of the copying."""
        copied.append(amount)
        number = len(copied)
        if number in (3, 20):
            store.put("one", [make_record("d39", f"again {number}", namespace="one")])
            store.delete("one", [f"d{number}"])
            store.put("one", [make_record(f"n{number}", namespace="one")])

    with closing(store.source()) as source:
        info = write_snapshot(source, tmp_path, "s", advance=write)
    snapshot = Snapshot(tmp_path, "s")
    snapshot.verify()
    (found,) = [c for c in snapshot.contents(None) if c.namespace == "one"]
    records = list(found.records)
    newest = max(record.version for record in records)
    (entry,) = [n for n in info.namespaces if n.namespace == "one"]
    assert newest <= entry.version == found.version
    history = {  # SQLite reads the version that it began at, Redis a later one
        3: {f"d{n}" for n in range(40)} - {"d7"},
        9: ({f"d{n}" for n in range(40)} | {"n3", "n20"}) - {"d7", "d3", "d20"},
    }
    assert {record.id for record in records} == history[entry.version]


def test_a_namespace_that_holds_documents_is_refused_unless_told_and_nothing_changes(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    target.put("t{wo}", [make_record("mine", namespace="t{wo}")])
    target.put("third", [make_record("mine", namespace="third")])
    before = contents(target)
    with pytest.raises(NamespaceNotEmpty, match=r"'t\{wo\}' holds 1 documents"):
        restore(tmp_path, target)
    assert contents(target) == before
    versions = restore(tmp_path, target, is_replacing=True)
    assert versions["t{wo}"] == 2
    assert contents(target) == contents(store) | {"third": before["third"]}


def test_a_restored_version_is_behind_both_histories(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    for number in range(9):
        target.put("one", [make_record(f"x{number}", namespace="one")])
    assert restore(tmp_path, target, is_replacing=True)["one"] == 10


def test_some_namespaces_can_be_restored_alone(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    snapshot = Snapshot(tmp_path, "s")
    target.restore(snapshot.contents(FINGERPRINT, namespaces=["t{wo}"]))
    assert list(contents(target)) == ["t{wo}"]
    with pytest.raises(SnapshotNotFound, match="'nowhere'"):
        snapshot.contents(FINGERPRINT, namespaces=["nowhere"])


def test_a_restore_that_fails_in_the_middle_changes_nothing(
    store: Store, target: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    target.put("one", [make_record("mine", namespace="one")])
    before = (contents(target), target.version("one"))
    found = Snapshot(tmp_path, "s").contents(FINGERPRINT)
    shard = next(iter(sorted((tmp_path / "s").glob("shard-00002-*"))))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptSnapshot, match="'s'"):
        target.restore(found, is_replacing=True)
    assert (contents(target), target.version("one")) == before


def test_another_models_snapshot_is_refused_with_the_way_out(
    store: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(store, make_record)
    take(store, tmp_path)
    other = replace(FINGERPRINT, base_lm_hash="f" * 64)
    with pytest.raises(ForeignSnapshot, match="mac bank reindex"):
        Snapshot(tmp_path, "s").check_fingerprint(other)
    Snapshot(tmp_path, "s").check_fingerprint(FINGERPRINT)


def test_records_of_another_model_are_refused_where_they_are_read(
    store: Store, tmp_path: Path, make_record: MakeRecord
) -> None:
    # Defect 10: a restore writes what it reads as its own networks' records.
    fill(store, make_record)
    take(store, tmp_path)
    other = replace(FINGERPRINT, base_lm_hash="f" * 64)
    (content,) = Snapshot(tmp_path, "s").contents(other, namespaces=["one"])
    with pytest.raises(ForeignRecord, match="base_lm_hash"):
        list(content.records)


@pytest.fixture
def taken(tmp_path: Path, make_record: MakeRecord) -> Path:
    """A directory with a snapshot `s` of a store in it."""
    with closing(sqlite_in(tmp_path / "store")()) as store:
        fill(store, make_record)
        take(store, tmp_path / "snapshots")
    return tmp_path / "snapshots"


@pytest.mark.parametrize("pattern", ["shard-00001-*", "documents-00001.jsonl"])
def test_a_truncated_file_is_named(taken: Path, pattern: str) -> None:
    (path,) = (taken / "s").glob(pattern)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptSnapshot, match=f"{path.name} has .* bytes"):
        Snapshot(taken, "s").verify()


@pytest.mark.parametrize("pattern", ["shard-00001-*", "documents-00001.jsonl"])
def test_a_flipped_bit_is_found(taken: Path, pattern: str) -> None:
    (path,) = (taken / "s").glob(pattern)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptSnapshot, match=f"{path.name} fails its checksum"):
        Snapshot(taken, "s").verify()


def test_a_missing_file_is_named(taken: Path) -> None:
    (taken / "s" / "documents-00000.jsonl").unlink()
    with pytest.raises(CorruptSnapshot, match=r"documents-00000\.jsonl cannot be read"):
        Snapshot(taken, "s").verify()


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((directory / MANIFEST).read_text())
    change(values)
    (directory / MANIFEST).write_text(json.dumps(values))


def test_a_changed_manifest_is_corrupt(taken: Path) -> None:
    rewrite(taken / "s", lambda values: values["namespaces"].pop())
    with pytest.raises(CorruptSnapshot, match="manifest fails its checksum"):
        Snapshot(taken, "s")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x"}'])
def test_a_manifest_that_is_none_is_corrupt(taken: Path, text: str) -> None:
    (taken / "s" / MANIFEST).write_text(text)
    with pytest.raises(CorruptSnapshot, match="manifest"):
        Snapshot(taken, "s")


def test_a_newer_format_is_refused_with_both_versions(taken: Path) -> None:
    rewrite(taken / "s", lambda values: values.update(format_version=2))
    with pytest.raises(SnapshotTooNew, match="format version 2.*up to 1"):
        Snapshot(taken, "s")


def test_a_name_is_taken_once(taken: Path, tmp_path: Path) -> None:
    with closing(sqlite_in(tmp_path / "store")()) as store:
        with pytest.raises(SnapshotExists, match="'s'"):
            take(store, taken)
        with pytest.raises(InvalidInput, match="no name for a snapshot"):
            take(store, taken, "../evil")


def test_snapshots_are_listed_and_deleted(taken: Path, tmp_path: Path) -> None:
    with closing(sqlite_in(tmp_path / "store")()) as store:
        take(store, taken, "t")
    (taken / "broken").mkdir()
    (taken / "broken" / MANIFEST).write_text("{")
    assert [info.name for info in list_snapshots(taken)] == ["s", "t"]
    delete_snapshot(taken, "s")
    assert [info.name for info in list_snapshots(taken)] == ["t"]
    with pytest.raises(SnapshotNotFound, match="'s'"):
        delete_snapshot(taken, "s")
    with pytest.raises(SnapshotNotFound, match="'s'"):
        Snapshot(taken, "s")
    assert list_snapshots(tmp_path / "nowhere") == []


def test_a_snapshot_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    def fail(amount: int) -> None:
        raise OSError(28, "No space left on device")

    with closing(sqlite_in(tmp_path / "store")()) as store:
        fill(store, make_record)
        with closing(store.source()) as source, pytest.raises(StoreError, match="No space left"):
            write_snapshot(source, tmp_path / "snapshots", "s", advance=fail)
    assert names_in(tmp_path / "snapshots") == {LOCK}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("left", [MANIFEST, LOCK])
def test_what_a_killed_snapshot_left_goes_with_the_next(
    taken: Path, tmp_path: Path, left: str
) -> None:
    (taken / ".partial-dead").mkdir()
    (taken / ".partial-dead" / left).write_text("{}")
    assert [info.name for info in list_snapshots(taken)] == ["s"]
    with closing(sqlite_in(tmp_path / "store")()) as store:
        take(store, taken, "t")
    assert not (taken / ".partial-dead").exists()


@pytest.fixture
def beside(tmp_path: Path, make_record: MakeRecord) -> Iterator[Callable[[str, str], SnapshotInfo]]:
    """Writes one snapshot, and in the middle of it another, as another process would."""
    with closing(sqlite_in(tmp_path / "store")()) as store:
        fill(store, make_record)

        def write(name: str, meanwhile: str) -> SnapshotInfo:
            others = iter([meanwhile])

            def advance(amount: int) -> None:
                for other in others:
                    take(store, tmp_path / "snapshots", other)

            with closing(store.source()) as source:
                return write_snapshot(source, tmp_path / "snapshots", name, advance=advance)

        yield write


def test_a_snapshot_that_another_process_writes_is_left_alone(
    beside: Callable[[str, str], SnapshotInfo], tmp_path: Path
) -> None:
    info = beside("s", "t")
    assert Snapshot(tmp_path / "snapshots", "s").verify() == info
    Snapshot(tmp_path / "snapshots", "t").verify()
    assert names_in(tmp_path / "snapshots") == {LOCK, "s", "t"}
    assert LOCK not in names_in(tmp_path / "snapshots" / "s")


def test_a_name_that_another_process_writes_is_taken(
    beside: Callable[[str, str], SnapshotInfo], tmp_path: Path
) -> None:
    with pytest.raises(SnapshotExists, match="'s' is being written by another process"):
        beside("s", "s")


def test_a_process_that_is_killed_leaves_its_snapshot_to_the_next(
    taken: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from mac_core.memory.snapshot_writing import _begin\n"
        "with _begin(Path(sys.argv[1])): print('written', flush=True); sys.stdin.read()"
    )
    partial = taken / f"{PARTIAL}dead"
    with (
        closing(sqlite_in(tmp_path / "store")()) as store,
        subprocess.Popen(
            [sys.executable, "-c", program, str(partial)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        take(store, taken, "t")
        assert partial.exists()
        process.kill()
        process.wait()
        take(store, taken, "u")
    assert not partial.exists()


class DamagedSource:
    """A source whose record `d5` has a flipped bit."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def copy(self, namespace: str, keep: Callable[[RawRecord], None]) -> Any:
        return self._inner.copy(namespace, lambda record: keep(self._damaged(record)))

    def _damaged(self, record: RawRecord) -> RawRecord:
        bad = record._replace(payload=record.payload[:-1] + b"\x00\x01")
        return bad if record.id == "d5" else record


def test_a_record_that_is_corrupt_in_the_store_is_left_out_and_named(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    with closing(sqlite_in(tmp_path / "store")()) as store:
        fill(store, make_record)
        with closing(store.source()) as source:
            info = write_snapshot(DamagedSource(source), tmp_path, "s")
    assert info.left_out == (("one", "d5"),)
    assert Snapshot(tmp_path, "s").info == info
    with closing(sqlite_in(tmp_path / "target")()) as target:
        restore(tmp_path, target)
        assert len(list(target.scan("one"))) == 38


def test_a_store_without_a_fingerprint_restores_nothing(taken: Path, tmp_path: Path) -> None:
    with (
        closing(sqlite_in(tmp_path / "target")(None)) as target,
        pytest.raises(StoreError, match="read-only"),
    ):
        restore(taken, target)


def test_a_source_of_a_missing_database_is_an_error(tmp_path: Path) -> None:
    from mac_core.memory.sources import SqliteSource

    with pytest.raises(StoreError, match="could not be read"):
        SqliteSource(tmp_path / "none.sqlite3")


def test_the_format_of_version_1_still_opens(target: Store, tmp_path: Path) -> None:
    """The fixture was written once, when version 1 was new, and is never written again."""
    shutil.copytree(FIXTURE / "format-1", tmp_path / "s")
    info = Snapshot(tmp_path, "s").verify()
    assert (info.format_version, info.store) == (1, "sqlite")
    assert restore(tmp_path, target) == {"default": 4, "tenant": 2}
    (updated, other) = target.scan("default")
    assert (updated.id, updated.text, updated.title) == ("bridge", "It opened in 1931.", "Bridge")
    assert (updated.metadata, updated.published_at) == ({"kind": "news"}, 1_700_000_000.0)
    assert (other.id, [part.chunk.text for part in other.chunks]) == ("two", ["one ", "two"])
    slots = updated.chunks[0].stored.unpack().slots
    expected = torch.tensor(json.loads((FIXTURE / "format-1-slots.json").read_text()))
    torch.testing.assert_close(slots, expected, rtol=0.0, atol=0.0)
