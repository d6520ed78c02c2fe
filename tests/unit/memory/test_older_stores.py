"""A bank that an earlier version wrote opens in this one, is read to the bit, and written on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from mac_core.errors import ForeignRecord
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import DATABASE, SqliteStore
from mac_core.types import Fingerprint
from tests.unit.memory.stores import FINGERPRINT

STORES = Path(__file__).parents[2] / "data" / "stores"
DATES = sorted(path.stem for path in STORES.glob("*.sqlite3"))
MakeRecord = Callable[..., DocumentRecord]


@pytest.fixture(params=DATES)
def date(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def directory(date: str, tmp_path: Path) -> Path:
    shutil.copy(STORES / f"{date}.sqlite3", tmp_path / DATABASE)
    return tmp_path


@pytest.fixture
def store(directory: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(directory, fingerprint=FINGERPRINT)) as opened:
        yield opened


def test_there_is_one_of_the_first_day() -> None:
    assert DATES[0] == "2026-11-21"


def test_documents_are_as_they_were(store: SqliteStore) -> None:
    two, bridge = store.scan("default")
    assert (two.id, [part.chunk.text for part in two.chunks]) == ("two", ["the ", "tex"])
    assert (bridge.id, bridge.text, bridge.title) == ("bridge", "It opened in 1931.", "Bridge")
    assert (bridge.metadata, bridge.published_at) == ({"kind": "news"}, 1.7e9)
    (tenant,) = store.scan("tenant")
    assert (tenant.id, tenant.expires_at) == ("t", 5e9)
    found = [(info.namespace, info.num_documents, info.bank_version) for info in store.namespaces()]
    assert found == [("default", 2, 4), ("tenant", 1, 1)]


def test_modulations_are_the_same_bits(store: SqliteStore, date: str) -> None:
    expected = json.loads((STORES / f"{date}-slots.json").read_text())
    read = {
        f"{namespace}/{record.id}/{number}": part.stored.unpack().slots
        for namespace in ("default", "tenant")
        for record in store.scan(namespace)
        for number, part in enumerate(record.chunks)
    }
    assert read.keys() == expected.keys()
    for name, slots in read.items():
        torch.testing.assert_close(slots, torch.tensor(expected[name]), rtol=0.0, atol=0.0)


def test_it_is_written_on(store: SqliteStore, make_record: MakeRecord) -> None:
    assert store.put("default", [make_record("new")]) == 5
    assert store.delete("default", ["two"]) == (("two",), 6)
    assert store.create_namespace("other") == (True, 1)
    assert store.drop_namespace("tenant") == (1, 2)
    assert [record.id for record in store.scan("default")] == ["bridge", "new"]


def test_another_bundle_is_refused_as_ever(directory: Path) -> None:
    other = Fingerprint(amortization_hash="c" * 64, base_lm_hash="b" * 64)
    with (
        closing(SqliteStore(directory, fingerprint=other)) as opened,
        pytest.raises(ForeignRecord, match="mac bank reindex"),
    ):
        list(opened.scan("default"))
