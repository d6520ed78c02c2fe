"""A process that is killed while it writes loses nothing that it acknowledged, and doubles nothing.

The child writes pairs of documents, d and e, in one transaction each, over and over the same ids,
and prints the number of a write once the store has returned. The child is killed, or its Redis.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mac_core.memory.opening import open_store, url_of_directory
from mac_core.types import Fingerprint
from tests.redis_process import RedisProcess

FINGERPRINT = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
NUM_PAIRS = 40
CHILD = """
import itertools, sys
import torch
from mac_core.errors import StoreError
from mac_core.memory.chunking import Chunk
from mac_core.memory.quantization import pack
from mac_core.memory.opening import open_store
from mac_core.memory.records import DocumentRecord, StoredChunk
from mac_core.types import Fingerprint, Modulation

torch.set_num_threads(1)
stored = pack(Modulation(
    slots=torch.ones(8, 256), selection_key=torch.ones(4), token_ids=torch.arange(3),
    token_offsets=torch.zeros(3, 2, dtype=torch.int64), pointer_keys=torch.ones(3, 8),
))


def record(name, text):
    chunk = Chunk(index=0, text=text, start=0, end=len(text), num_tokens=3)
    return DocumentRecord(
        id=name, namespace="n", title=None, text=text, metadata={}, published_at=None,
        expires_at=None, created_at=1.0, updated_at=1.0, content_hash=text, num_tokens=3,
        chunks=(StoredChunk(chunk=chunk, stored=stored),),
    )


fingerprint = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
store = open_store(sys.argv[1], fingerprint=fingerprint)
for number in itertools.count(store.version("n") + 1):
    pair = number % int(sys.argv[2])
    text = f"write {number}"
    try:
        version = store.put("n", [record(f"d{pair}", text), record(f"e{pair}", text)])
    except StoreError:
        sys.exit(3)
    print(version, flush=True)
"""


@dataclass
class Writing:
    """A child that writes, and the versions it acknowledged, each with when that was read."""

    child: subprocess.Popen[bytes]
    acknowledged: list[tuple[int, float]] = field(default_factory=list)  # monotonic seconds
    killed_at: float = float("inf")

    def last_before(self, seconds: float) -> int:
        """The last version acknowledged that long before the kill; 0: none."""
        until = self.killed_at - seconds
        return max((version for version, at in self.acknowledged if at <= until), default=0)


@contextmanager
def writing(url: str, *, chance: random.Random) -> Iterator[Writing]:
    """Yields after a while of writing, for a kill; the rest is read afterwards."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(NUM_PAIRS)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    found = Writing(child)
    with child, child.stdout as output:
        for _ in range(chance.randint(1, 150)):
            found.acknowledged.append((int(next(output)), time.monotonic()))
        # A fraction of one write's time further, so that the kill falls anywhere within it.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=chance.uniform(0.0, 0.01))
        try:
            yield found
        finally:
            child.kill()
        found.killed_at = min(found.killed_at, time.monotonic())
        rest = [line for line in output.readlines() if line.endswith(b"\n")]
        found.acknowledged += [(int(line), found.killed_at) for line in rest]


def write_until_killed(url: str, *, chance: random.Random) -> int:
    """The last version that the child acknowledged before SIGKILL."""
    with writing(url, chance=chance) as found:
        pass
    return found.last_before(0.0)


def check_store(url: str, *, acknowledged: int, at_least: int | None = None) -> int:
    """Every write up to a version is there once, each pair of one write; that version.

    It is at least `acknowledged`, or `at_least` where that is all that was promised.
    """
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        texts = [(record.id, record.text) for record in store.scan("n")]
        version = store.version("n")
    least = acknowledged if at_least is None else at_least
    assert least <= version <= acknowledged + 1
    last_writes = range(max(1, version - NUM_PAIRS + 1), version + 1)
    expected = {
        f"{letter}{number % NUM_PAIRS}": f"write {number}"
        for number in last_writes
        for letter in "de"
    }
    assert dict(texts) == expected
    assert set(Counter(name for name, _ in texts).values()) <= {1}
    return version


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return url_of_directory(tmp_path)
    found: str = request.getfixturevalue("redis_url")
    return found


@pytest.mark.parametrize(
    "rounds", [3, pytest.param(10, marks=pytest.mark.slow)], ids=lambda rounds: f"{rounds} rounds"
)
def test_acknowledged_writes_survive_sigkill(url: str, rounds: int) -> None:
    chance = random.Random(rounds)
    for _ in range(rounds):
        check_store(url, acknowledged=write_until_killed(url, chance=chance))


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(20, marks=pytest.mark.slow)], ids=lambda rounds: f"{rounds} rounds"
)
@pytest.mark.parametrize(("appendfsync", "may_lose_s"), [("always", 0.0), ("everysec", 3.0)])
def test_acknowledged_writes_survive_sigkill_of_redis(
    tmp_path: Path, appendfsync: str, may_lose_s: float, rounds: int
) -> None:
    """`everysec` may put a write off for two seconds while the disk is still at the last sync."""
    server = RedisProcess(tmp_path / "redis", appendfsync=appendfsync)
    chance = random.Random(rounds)
    lost = []
    try:
        for _ in range(rounds):
            with writing(server.url, chance=chance) as found:
                server.kill()
                found.killed_at = time.monotonic()
                assert found.child.wait(timeout=60.0) == 3
            server.start()
            acknowledged = max(version for version, _ in found.acknowledged)
            least = found.last_before(may_lose_s) if may_lose_s else acknowledged
            version = check_store(server.url, acknowledged=acknowledged, at_least=least)
            lost.append(max(0, acknowledged - version))
    finally:
        server.kill()
    print(f"\n{rounds} kills of Redis with appendfsync {appendfsync}: lost {sum(lost)} writes")


def test_the_check_notices_a_lost_write(url: str) -> None:
    acknowledged = write_until_killed(url, chance=random.Random(0))
    with pytest.raises(AssertionError):
        check_store(url, acknowledged=acknowledged + 2)
