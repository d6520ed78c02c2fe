"""A process that is killed while it writes loses nothing that it acknowledged, and doubles nothing.

The child writes pairs of documents, d and e, in one transaction each, over and over the same ids,
and prints the number of a write once the store has returned.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from mac_core.memory.sqlite_store import SqliteStore
from mac_core.types import Fingerprint

FINGERPRINT = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
NUM_PAIRS = 40
CHILD = """
import itertools, sys
from pathlib import Path
import torch
from mac_core.memory.chunking import Chunk
from mac_core.memory.quantization import pack
from mac_core.memory.records import DocumentRecord, StoredChunk
from mac_core.memory.sqlite_store import SqliteStore
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
store = SqliteStore(Path(sys.argv[1]), fingerprint=fingerprint)
for number in itertools.count(store.version("n") + 1):
    pair = number % int(sys.argv[2])
    text = f"write {number}"
    version = store.put("n", [record(f"d{pair}", text), record(f"e{pair}", text)])
    print(version, flush=True)
"""


def write_until_killed(directory: Path, *, chance: random.Random) -> list[int]:
    """Versions that the child acknowledged before SIGKILL."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(NUM_PAIRS)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child, child.stdout as output:
        acknowledged = [next(output) for _ in range(chance.randint(1, 150))]
        # A fraction of one write's time further, so that the kill falls anywhere within it.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=chance.uniform(0.0, 0.01))
        child.kill()
        acknowledged += output.readlines()
    return [int(line) for line in acknowledged if line.endswith(b"\n")]


def check_store(directory: Path, *, acknowledged: int) -> None:
    """Every write up to `acknowledged` is there once, and each pair is of one write."""
    with closing(SqliteStore(directory, fingerprint=FINGERPRINT)) as store:
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


@pytest.mark.parametrize(
    "rounds", [3, pytest.param(10, marks=pytest.mark.slow)], ids=lambda rounds: f"{rounds} rounds"
)
def test_acknowledged_writes_survive_sigkill(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    for _ in range(rounds):
        check_store(tmp_path, acknowledged=write_until_killed(tmp_path, chance=chance)[-1])


def test_the_check_notices_a_lost_write(tmp_path: Path) -> None:
    acknowledged = write_until_killed(tmp_path, chance=random.Random(0))[-1]
    with pytest.raises(AssertionError):
        check_store(tmp_path, acknowledged=acknowledged + 2)
