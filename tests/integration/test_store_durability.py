"""A process that is killed while it writes loses nothing that it acknowledged, and doubles nothing.

The child writes pairs of documents, d and e, in one transaction each, over and over the same ids,
and prints the number of a write once the store has returned. The child is killed, or its Redis.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
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


@contextmanager
def writing(
    url: str, *, chance: random.Random
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A child that has written for a while, and the versions that it acknowledged in the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(NUM_PAIRS)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    acknowledged: list[int] = []
    with child, child.stdout as output:
        lines = [next(output) for _ in range(chance.randint(1, 150))]
        # A fraction of one write's time further, so that the kill falls anywhere within it.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=chance.uniform(0.0, 0.01))
        try:
            yield child, acknowledged
        finally:
            child.kill()
        lines += output.readlines()
        acknowledged += [int(line) for line in lines if line.endswith(b"\n")]


def write_until_killed(url: str, *, chance: random.Random) -> int:
    """The last version that the child acknowledged before SIGKILL."""
    with writing(url, chance=chance) as (_, acknowledged):
        pass
    return acknowledged[-1]


def check_store(url: str, *, acknowledged: int) -> None:
    """Every write up to `acknowledged` is there once, and each pair is of one write."""
    with closing(open_store(url, fingerprint=FINGERPRINT)) as store:
        texts = [(record.id, record.text) for record in store.scan("n")]
        version = store.version("n")
    assert acknowledged <= version <= acknowledged + 1
    last_writes = range(max(1, version - NUM_PAIRS + 1), version + 1)
    expected = {
        f"{letter}{number % NUM_PAIRS}": f"write {number}"
        for number in last_writes
        for letter in "de"
    }
    assert dict(texts) == expected
    assert set(Counter(name for name, _ in texts).values()) == {1}


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
@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
def test_acknowledged_writes_survive_sigkill_of_redis(
    tmp_path: Path, appendfsync: str, rounds: int
) -> None:
    """Both survive the process's death; the machine's only `always`, which no test here shows."""
    server = RedisProcess(tmp_path / "redis", appendfsync=appendfsync)
    chance = random.Random(rounds)
    try:
        for _ in range(rounds):
            with writing(server.url, chance=chance) as (child, acknowledged):
                server.kill()
                assert child.wait(timeout=20.0) == 3
            server.start()
            check_store(server.url, acknowledged=acknowledged[-1])
    finally:
        server.kill()


def test_the_check_notices_a_lost_write(url: str) -> None:
    acknowledged = write_until_killed(url, chance=random.Random(0))
    with pytest.raises(AssertionError):
        check_store(url, acknowledged=acknowledged + 2)
