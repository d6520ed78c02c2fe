"""Damage to what is stored: each kind has its error, and nothing else is harmed."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.engine.maintenance import create_snapshot, verify_bank
from mac_core.engine.mirror import SharedMirror
from mac_core.engine.ports import SilentObserver
from mac_core.errors import CorruptRecord, StoreError
from mac_core.memory.bank import MemoryBank
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.snapshot_writing import LOCK
from mac_core.memory.sqlite_store import DATABASE
from mac_core.types import Answer, Document, DocumentResult, Fingerprint, Question
from tests.unit.engine.conftest import outcome
from tests.unit.engine.fakes import FINGERPRINT, WAIT_S, FakeModel

FLIPS = ["payload", "header", "not text"]


@dataclass
class Bank:
    """A store by its URL, and engines on it."""

    url: str
    directory: Path
    flip: Callable[[str, str], None]  # part of a record, id

    def start(self, *, fingerprint: Fingerprint = FINGERPRINT) -> Engine:
        engine = Engine(
            bundle=Path("fake"),
            store_directory=self.directory,
            store_url=self.url,
            config=EngineConfig(max_batch_chunks=4),
            load=lambda: FakeModel(fingerprint=fingerprint),
        )
        engine.start()
        engine.wait_until_ready(timeout_s=WAIT_S)
        return engine


def learn(engine: Engine, *names: str) -> list[DocumentResult]:
    documents = [
        Document(id=name, text=f"The code of vault {name} is Code{name}.") for name in names
    ]
    return outcome(engine.add(documents))


def ask(engine: Engine, name: str) -> Answer:
    return outcome(engine.ask(Question(text=f"What is the code of vault {name}?", top_k=0)))


def in_sqlite(directory: Path) -> Callable[[str, str], None]:
    statements = {
        "payload": "UPDATE documents SET payload = zeroblob(length(payload)) WHERE id = ?",
        "header": "UPDATE documents SET header = replace(header, 'num_tokens', 'num_tokenz') "
        "WHERE id = ?",
        "not text": "UPDATE documents SET header = CAST(x'ff7b' AS TEXT), "
        "metadata = CAST(x'ff' AS TEXT) WHERE id = ?",
    }

    def flip(part: str, name: str) -> None:
        with closing(sqlite3.connect(directory / DATABASE)) as database:
            database.execute(statements[part], (name,))
            database.commit()

    return flip


def in_redis(client: Redis) -> Callable[[str, str], None]:
    def flip(part: str, name: str) -> None:
        key = "mac:{default}:payloads" if part == "payload" else "mac:{default}:headers"
        content = bytearray(client.hget(key, name) or b"")
        content[len(content) // 2] ^= 0xFF if part == "not text" else 1
        client.hset(key, name, bytes(content))

    return flip


@pytest.fixture(params=["sqlite", "redis"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    directory = tmp_path / "bank"
    if request.param == "sqlite":
        yield Bank(url_of_directory(directory), directory, in_sqlite(directory))
        return
    url: str = request.getfixturevalue("redis_url")
    with closing(Redis.from_url(url)) as client:
        yield Bank(url, directory, in_redis(client))


@pytest.mark.parametrize("part", FLIPS)
def test_a_corrupt_record_is_left_out_and_its_neighbours_are_served(bank: Bank, part: str) -> None:
    engine = bank.start()
    learn(engine, "1", "2", "3")
    engine.close()
    bank.flip(part, "2")
    engine = bank.start()
    try:
        status = engine.status()
        assert (status.state, status.num_documents, status.num_corrupt) == ("ready", 2, 1)
        assert [ask(engine, name).text for name in "13"] == ["Code1", "Code3"]
        assert "2" not in {source.id for source in ask(engine, "2").sources}
        with pytest.raises(CorruptRecord, match="document '2' of namespace 'default'"):
            outcome(engine.get_document("2", namespace="default"))
        page = outcome(engine.list_documents(namespace="default", limit=9, cursor=None, filter={}))
        assert [info.id for info in page.documents] == ["1", "2", "3"]
        assert [line.partition(":")[0] for line in verify_bank(bank.url).corrupt] == [
            "document '2' of namespace 'default'"
        ]
        assert outcome(engine.remove(["2"])).removed_ids == ("2",)
        assert engine.status().num_corrupt == 0
        assert learn(engine, "2")[0].status == "inserted"
        assert ask(engine, "2").text == "Code2"
    finally:
        engine.close(now=True)


@pytest.mark.parametrize("part", FLIPS)
def test_a_document_that_comes_again_takes_its_corrupt_records_place(bank: Bank, part: str) -> None:
    engine = bank.start()
    learn(engine, "1", "2")
    engine.close()
    bank.flip(part, "2")
    engine = bank.start()
    try:
        assert engine.status().num_corrupt == 1
        assert [result.status for result in learn(engine, "1", "2")] == ["unchanged", "updated"]
        assert engine.status().num_corrupt == 0
        assert ask(engine, "2").text == "Code2"
        assert [result.status for result in learn(engine, "2")] == ["unchanged"]
    finally:
        engine.close(now=True)
    assert verify_bank(bank.url).corrupt == ()


def test_a_replica_goes_on_over_a_record_that_came_corrupt(redis_url: str, tmp_path: Path) -> None:
    with closing(Redis.from_url(redis_url)) as client:
        bank = Bank(redis_url, tmp_path, in_redis(client))
        writer = open_store(redis_url, fingerprint=FINGERPRINT)
        engine = bank.start()
        learn(engine, "1", "2")
        records = list(writer.scan("default"))
        engine.close()
        bank.flip("payload", "2")
        engine = bank.start()
        try:
            assert writer.put("default", records[:1]) == 2
            assert ask(engine, "1").text == "Code1"
            answer = outcome(engine.ask(Question(text="Which?", min_version=2)))
            assert answer.bank_version == 2
            assert engine.status().num_corrupt == 1
        finally:
            engine.close(now=True)
            writer.close()


def test_a_deleted_namespace_has_no_corrupt_record(bank: Bank) -> None:
    engine = bank.start()
    learn(engine, "1", "2")
    engine.close()
    bank.flip("payload", "2")
    engine = bank.start()
    try:
        outcome(engine.delete_namespace("default"))
        assert engine.status().num_corrupt == 0
    finally:
        engine.close(now=True)


@pytest.mark.parametrize("is_healed", [True, False])
def test_a_replica_counts_no_record_that_another_server_has_healed_or_removed(
    redis_url: str, tmp_path: Path, is_healed: bool
) -> None:
    with closing(Redis.from_url(redis_url)) as client:
        bank = Bank(redis_url, tmp_path, in_redis(client))
        engine = bank.start()
        learn(engine, "1", "2")
        engine.close()
        writer = open_store(redis_url, fingerprint=FINGERPRINT)
        records = list(writer.scan("default"))
        bank.flip("payload", "2")
        engine = bank.start()
        try:
            assert engine.status().num_corrupt == 1
            if is_healed:
                writer.put("default", records[1:])
            else:
                writer.delete("default", ["2"])
            outcome(engine.ask(Question(text="Which?", min_version=2)))
            assert engine.status().num_corrupt == 0
        finally:
            engine.close(now=True)
            writer.close()


def test_a_corrupt_record_that_went_while_nobody_followed_is_not_counted(
    redis_url: str, tmp_path: Path
) -> None:
    with (
        closing(Redis.from_url(redis_url)) as client,
        closing(RedisStore(redis_url, fingerprint=FINGERPRINT)) as store,
        closing(RedisStore(redis_url, fingerprint=FINGERPRINT)) as writer,
    ):
        bank = Bank(redis_url, tmp_path, in_redis(client))
        engine = bank.start()
        learn(engine, "1", "2")
        engine.close()
        bank.flip("payload", "2")
        model = FakeModel()
        mirror = SharedMirror(
            model=model,
            store=store,
            bank=MemoryBank(model.config.selection),
            observer=SilentObserver(),
        )
        mirror.load()
        assert mirror.num_corrupt == 1
        writer.delete("default", ["2"])
        client.delete("mac:{default}:changes")  # so that documents are compared
        mirror.reload("default")
        assert mirror.num_corrupt == 0


def test_another_models_store_is_refused_with_the_way_out(bank: Bank) -> None:
    engine = bank.start()
    learn(engine, "1")
    engine.close()
    other = bank.start(fingerprint=Fingerprint(amortization_hash="c" * 64, base_lm_hash="d" * 64))
    status = other.status()
    assert status.state == "failed"
    assert status.detail.startswith("ForeignRecord: document '1' of namespace 'default'")
    assert "mac bank reindex" in status.detail
    other.close()  # it gives the store back after it has said that it failed
    again = bank.start()
    try:
        assert ask(again, "1").text == "Code1"
    finally:
        again.close()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_database_is_an_error_of_the_store_that_names_it(
    tmp_path: Path, share: float
) -> None:
    bank = Bank(url_of_directory(tmp_path), tmp_path, in_sqlite(tmp_path))
    engine = bank.start()
    learn(engine, *(str(number) for number in range(60)))
    engine.close()
    path = tmp_path / DATABASE
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    status = bank.start().status()
    assert status.state == "failed"
    assert status.detail.startswith("StoreError")
    assert DATABASE in status.detail
    assert "malformed" in status.detail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; only root may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, *, leaving: int) -> Path:
    """A file that leaves that many bytes of the 4 MB free, about.

    It is written until nothing more goes in, then cut: how much is free, `statvfs` says only about
    where a kernel counts blocks for each CPU, and the engine writes meanwhile.
    """
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(file.tell() - leaving)
    return filler


def test_a_full_disk_refuses_writes_and_harms_nothing(small_disk: Path) -> None:
    directory = small_disk / "bank"
    bank = Bank(url_of_directory(directory), directory, in_sqlite(directory))
    engine = bank.start()
    try:
        learn(engine, "1", "2")
        filler = fill(small_disk, leaving=20_000)
        long = " ".join(f"word{number}." for number in range(4000))
        (result,) = outcome(engine.add([Document(id="big", text=long)]))
        assert (result.status, type(result.error)) == ("failed", StoreError)
        assert "full" in str(result.error)
        assert [ask(engine, name).text for name in "12"] == ["Code1", "Code2"]
        assert outcome(engine.get_document("1", namespace="default")).text is not None
        with pytest.raises(StoreError, match="No space left"):
            create_snapshot(bank.url, small_disk / "snapshots", "s")
        assert [path.name for path in (small_disk / "snapshots").iterdir()] == [LOCK]
        filler.unlink()
        assert outcome(engine.add([Document(id="big", text=long)]))[0].status == "inserted"
    finally:
        engine.close(now=True)
    again = bank.start()
    try:
        assert again.status().num_documents == 3
        assert [ask(again, name).text for name in "12"] == ["Code1", "Code2"]
    finally:
        again.close(now=True)
