"""A bank that an earlier version served opens in this one: it is read, asked, and learned on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mac_core.engine import Engine
from mac_core.engine.maintenance import verify_bank
from mac_core.memory.opening import url_of_directory
from mac_core.memory.sqlite_store import DATABASE
from mac_core.types import Document, Question
from tests.older_bank import COMPACTED, DOCUMENTS, WAITING, start_engine, write_bank
from tests.unit.engine.conftest import outcome
from tests.unit.engine.test_jobs import wait_for

BANKS = sorted((Path(__file__).parents[2] / "data" / "stores").glob("served-*"))


@pytest.fixture(params=BANKS, ids=lambda path: path.name)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.param, tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def engine(directory: Path) -> Iterator[Engine]:
    started = start_engine(directory)
    yield started
    started.close(now=True)


def answer_of(engine: Engine, vault: str, *, namespace: str, mode: str) -> str | None:
    text = f"What is the code of vault {vault}?"
    question = Question(text=text, namespace=namespace, mode=mode)  # type: ignore[arg-type]
    return outcome(engine.ask(question)).text


def wait_for_the_job(engine: Engine) -> None:
    wait_for(lambda: engine.status().jobs_ended.get("done") == 1)


def test_there_is_a_bank_and_none_is_large() -> None:
    sizes = [file.stat().st_size for bank in BANKS for file in bank.iterdir()]
    assert 0 < max(sizes) < 100_000


def test_every_record_is_whole(directory: Path) -> None:
    found = verify_bank(url_of_directory(directory))
    assert (found.num_documents, found.corrupt) == (len(DOCUMENTS) + len(COMPACTED) + 1, ())


def test_documents_are_read(engine: Engine) -> None:
    for namespace, documents in (("default", DOCUMENTS), ("compacted", COMPACTED)):
        for document in documents:
            found = outcome(engine.get_document(document.id or "", namespace=namespace))
            assert (found.text, found.title) == (document.text, document.title)
            assert (found.metadata, found.pinned) == (document.metadata, document.pinned)
            assert found.published_at == document.published_at
            assert (found.expires_at is None) == (document.ttl_s is None)
    names = [info.namespace for info in outcome(engine.list_namespaces())]
    assert names == ["compacted", "default", "empty"]


@pytest.mark.parametrize("mode", ["memory", "hybrid", "text"])
@pytest.mark.parametrize(
    ("namespace", "vault", "code"),
    [
        ("default", "amber", "Amber1"),
        ("default", "bronze", "Bronze2"),
        ("default", "copper", "Copper3"),
        ("compacted", "denim", "Denim4"),
    ],
)
def test_it_answers(engine: Engine, namespace: str, vault: str, code: str, mode: str) -> None:
    assert engine.status().num_corrupt == 0
    assert answer_of(engine, vault, namespace=namespace, mode=mode) == code


def test_what_it_knows_is_unchanged_and_what_is_new_goes_on_behind(engine: Engine) -> None:
    wait_for_the_job(engine)
    before = engine.bank_version("default")
    again = [document for document in DOCUMENTS if document.ttl_s is None]
    results = outcome(engine.add([*again, Document(id="new", text="The sky is blue.")]))
    assert [result.status for result in results] == ["unchanged", "unchanged", "inserted"]
    assert engine.bank_version("default") == before + 1
    assert outcome(engine.create_namespace("gone")).bank_version == 3


def test_a_job_that_waited_is_done(engine: Engine) -> None:
    wait_for_the_job(engine)
    found = outcome(engine.get_document(WAITING[0].id or "", namespace="default"))
    assert found.text == WAITING[0].text


def test_the_script_writes_such_a_bank(tmp_path: Path) -> None:
    write_bank(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {DATABASE} < written == {path.name for path in BANKS[-1].iterdir()}
