"""Write a store of synthetic documents: `python -m tests.benchmarks.bank_store DIRECTORY COUNT`.

Goes on where it was stopped.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch

from mac_core.memory.sqlite_store import SqliteStore
from mac_core.types import Fingerprint
from tests.benchmarks.synthetic import NAMESPACE, Corpus

FINGERPRINT = Fingerprint(amortization_hash="a" * 64, base_lm_hash="b" * 64)
BATCH = 1_000


def write(directory: Path, count: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with closing(SqliteStore(directory, fingerprint=FINGERPRINT)) as store:
        done = store.version(NAMESPACE)  # one version for each batch
        for number, batch in enumerate(Corpus().batches(count, size=BATCH)):
            if number >= done:
                store.put(NAMESPACE, batch.records)
                if number % 50 == 49:
                    print(f"{(number + 1) * BATCH:,} documents", file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), int(sys.argv[2]))
