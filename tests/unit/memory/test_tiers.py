"""A modulation is the same in RAM and on disk; what is in RAM stays within its limit."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mac_core.config import SelectionConfig, TierConfig
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.quantization import StoredModulation, pack
from mac_core.memory.records import DocumentRecord
from mac_core.memory.tiers import TieredModulation, Tiers, tiers_of
from mac_core.types import Modulation

MakeRecord = Callable[..., DocumentRecord]
MakeModulation = Callable[..., Modulation]
SELECTION = SelectionConfig(d_key=8)


def same(left: StoredModulation | TieredModulation, right: StoredModulation) -> bool:
    pairs = list(zip(left.tensors(), right.tensors(), strict=True))
    unpacked, expected = left.unpack(), right.unpack()
    return all(
        a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1]) for a, b in pairs
    ) and torch.equal(unpacked.slots, expected.slots)


def stored_of(make_modulation: MakeModulation, number: int) -> StoredModulation:
    return pack(make_modulation(str(number), with_pointer=number % 2 == 0))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    uses=st.lists(st.integers(0, 9), max_size=30),
    limit=st.integers(0, 12),
    released=st.sets(st.integers(0, 9)),
)
def test_any_use_reads_the_same_within_the_limit(
    make_modulation: MakeModulation, tmp_path: Path, uses: list[int], limit: int, released: set[int]
) -> None:
    stored = [stored_of(make_modulation, number) for number in range(10)]
    largest = max(item.num_bytes for item in stored)
    tiers = Tiers(max_ram_bytes=limit * largest, directory=tmp_path, segment_bytes=4096)
    tiered = [tiers.shelter(item) for item in stored]
    for number in uses:
        assert same(tiered[number], stored[number])
        assert tiers.ram_bytes <= limit * largest
        assert tiers.ram_bytes + tiers.disk_bytes == sum(item.num_bytes for item in stored)
    for number in released:
        tiered[number].release()
        assert same(tiered[number], stored[number])
    left = [item for number, item in enumerate(stored) if number not in released]
    assert tiers.ram_bytes + tiers.disk_bytes == sum(item.num_bytes for item in left)


def test_the_least_recently_used_goes_to_disk(
    make_modulation: MakeModulation, tmp_path: Path
) -> None:
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=2 * stored.num_bytes, directory=tmp_path)
    first, second = tiers.shelter(stored), tiers.shelter(stored)
    first.unpack()
    third = tiers.shelter(stored)
    assert [item.is_hot for item in (first, second, third)] == [True, False, True]
    second.unpack()
    assert [item.is_hot for item in (first, second, third)] == [False, True, True]


def test_a_modulation_is_written_once(make_modulation: MakeModulation, tmp_path: Path) -> None:
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=0, directory=tmp_path)
    tiered = tiers.shelter(stored)
    place = tiered._place
    for _ in range(5):
        tiered.unpack()
    assert tiered._place is place
    assert (tiers.ram_bytes, tiers.disk_bytes) == (0, stored.num_bytes)


def test_files_have_no_name_and_go_with_what_is_in_them(
    make_modulation: MakeModulation, tmp_path: Path
) -> None:
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=0, directory=tmp_path, segment_bytes=1)
    before = _maps(tmp_path)
    tiered = [tiers.shelter(stored) for _ in range(5)]
    assert list(tmp_path.iterdir()) == []
    assert _maps(tmp_path) - before == 5
    for item in tiered:
        item.release()
    del tiered, item
    gc.collect()
    assert _maps(tmp_path) - before == 1  # the one that is being filled


def _maps(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(directory))


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_everything_in_ram(
    make_modulation: MakeModulation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=stored.num_bytes, directory=tmp_path)
    tiered = [tiers.shelter(stored) for _ in range(3)]
    assert all(item.is_hot for item in tiered)
    assert same(tiered[0], stored)
    assert caplog.text.count("over its limit") == 1


def test_a_disk_that_was_full_is_tried_again_after_a_minute(
    make_modulation: MakeModulation, tmp_path: Path
) -> None:
    now = 100.0
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=stored.num_bytes, directory=tmp_path, clock=lambda: now)
    with pytest.MonkeyPatch.context() as full:
        full.setattr(os, "posix_fallocate", no_space)
        tiered = [tiers.shelter(stored) for _ in range(3)]
    now = 159.9
    tiered[0].unpack()
    assert tiers.ram_bytes == 3 * stored.num_bytes
    now = 160.0
    tiered.append(tiers.shelter(stored))
    assert [item.is_hot for item in tiered] == [False, False, False, True]
    assert tiers.ram_bytes == stored.num_bytes


def test_a_full_disk_is_told_of_once_until_there_was_room(
    make_modulation: MakeModulation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    outcomes = iter([no_space, no_space, os.posix_fallocate, no_space])
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: next(outcomes)(*args))
    stored = stored_of(make_modulation, 1)
    tiers = Tiers(max_ram_bytes=0, directory=tmp_path, segment_bytes=1, clock=lambda: now)
    kept, told = [], []
    for later_s in (0.0, 60.0, 60.0):
        now += later_s
        kept.append(tiers.shelter(stored))
        told.append(caplog.text.count("over its limit"))
    assert told == [1, 1, 2]
    assert [item.is_hot for item in kept] == [False, True, True]


def outcome(bank: MemoryBank, view: BankView, **changes: Any) -> list[Any]:
    found = bank.select(
        view, query=torch.eye(8)[0], text="text", top_k=3, filter={}, as_of=None, now=0.0, **changes
    )
    return [
        (s.entry.document_id, s.score, s.log_prior, s.entry.stored.unpack().slots.tolist())
        for s in found
    ]


@pytest.mark.parametrize("limit", [0, 1000, 10**9])
def test_a_bank_in_tiers_gives_what_a_bank_in_ram_gives(
    make_record: MakeRecord, tmp_path: Path, limit: int
) -> None:
    tiers = Tiers(max_ram_bytes=limit, directory=tmp_path)
    tiered, plain = MemoryBank(SELECTION, tiers=tiers), MemoryBank(SELECTION)
    records = [make_record(f"d{n}", f"text {n}") for n in range(20)]
    for bank in (tiered, plain):
        bank.apply("default", 1, (), records)
        bank.apply("default", 2, ["d3"], [make_record("d4", "new text")])
    left, right = tiered.view("default"), plain.view("default")
    assert outcome(tiered, left) == outcome(plain, right)
    assert left.num_bytes == right.num_bytes == tiers.ram_bytes + tiers.disk_bytes
    assert plain.tier_bytes == {"device": 19 * 8 * 4, "ram": right.num_bytes, "disk": 0}
    assert tiered.tier_bytes["disk"] == tiers.disk_bytes
    tiered.apply("default", 3, [record.id for record in records], ())
    assert (tiers.ram_bytes, tiers.disk_bytes) == (0, 0)
    pairs = zip(left.entries, right.entries, strict=True)
    assert all(same(a.stored, b.stored) for a, b in pairs)


def test_cached_keys_stay_only_where_they_take_no_room(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    bank = MemoryBank(SELECTION, tiers=Tiers(max_ram_bytes=0, directory=tmp_path))
    empty, full = SimpleNamespace(tensors=()), SimpleNamespace(tensors=(torch.zeros(1),))
    keys: Any = [[empty], [full]]
    view = bank.apply("default", 1, (), [make_record("a"), make_record("b")], keys)
    assert [entry.aggregation_keys for entry in view.entries] == [empty, None]


def test_without_a_limit_there_are_no_tiers(tmp_path: Path) -> None:
    assert tiers_of(TierConfig()) is None
    assert tiers_of(TierConfig(max_ram_bytes=0, directory=str(tmp_path))) is not None
    with pytest.raises(ValueError, match="max_ram_bytes=-1"):
        TierConfig(max_ram_bytes=-1)
