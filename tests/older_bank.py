"""Write what a later version has to open: a served bank, a compacted one, a job that waits.

    python -m tests.older_bank DIRECTORY

Run it when a format changes, with the code before the change, into a new directory of
tests/data/stores; `tests/unit/engine/test_older_banks.py` opens every one of them.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.engine.compaction import compact
from mac_core.memory.compaction import parse_compaction
from mac_core.memory.directory_lock import LOCK_FILE
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.memory.sqlite_jobs import SqliteJobStore
from mac_core.memory.sqlite_store import DATABASE
from mac_core.types import Document
from tests.unit.engine.conftest import outcome
from tests.unit.engine.fakes import FINGERPRINT, WAIT_S
from tests.unit.engine.test_compaction import TokenModel

LONG = "There is more to say here, and it goes on. " * 3
DOCUMENTS = [
    Document(id="plain", text="The code of vault amber is Amber1."),
    Document(id="long", text=f"{LONG}The code of vault bronze is Bronze2.", title="Long"),
    Document(
        id="full",
        text="The code of vault copper is Copper3.",
        title="Züge",
        metadata={"kind": "news", "size": 2, "open": True, "part": None},
        published_at=1.7e9,
        ttl_s=3e9,
        pinned=True,
    ),
]
COMPACTED = [Document(id="small", text=f"{LONG}The code of vault denim is Denim4.")]
WAITING = [Document(id="late", text="The code of vault ebony is Ebony5.")]


def start_engine(directory: Path) -> Engine:
    for document in (*DOCUMENTS, *COMPACTED, *WAITING):
        TokenModel().tokenizer.encode(document.text)  # it can write only words that it has read
    engine = Engine(
        bundle=Path("fake"), store_directory=directory, config=EngineConfig(), load=TokenModel
    )
    engine.start()
    if not engine.wait_until_ready(timeout_s=WAIT_S):
        raise RuntimeError(engine.status().detail)
    return engine


def write_bank(directory: Path) -> None:
    engine = start_engine(directory)
    try:
        for namespace, documents in (("default", DOCUMENTS), ("compacted", COMPACTED)):
            outcome(engine.add(documents, namespace=namespace))
        outcome(engine.create_namespace("empty"))
        outcome(engine.create_namespace("gone"))
        outcome(engine.delete_namespace("gone"))
    finally:
        engine.close()
    with closing(open_store(url_of_directory(directory), fingerprint=FINGERPRINT)) as store:
        compact(store, TokenModel(), parse_compaction("codebook:64"), namespaces=["compacted"])
    with closing(SqliteJobStore(directory)) as jobs:
        jobs.submit("job", "default", WAITING, max_unfinished=1)
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        database.execute("VACUUM")
    (directory / LOCK_FILE).unlink()


if __name__ == "__main__":
    write_bank(Path(sys.argv[1]))
