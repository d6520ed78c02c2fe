"""`mac bank` and `mac snapshot` on a store without a server."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.cli import app
from tests.unit.memory.conftest import _make_record as make_record
from tests.unit.memory.stores import sqlite_in

RUNNER = CliRunner()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    with closing(sqlite_in(tmp_path / "data")()) as store:
        store.put("default", [make_record("a", title="T", metadata={"n": 1}, published_at=5.0)])
        store.put("default", [make_record("b")])
        store.put("default", [make_record("expired", expires_at=9.0)])
        store.put("tenant", [make_record("c", namespace="tenant", pinned=True)])
    return tmp_path / "data"


def run(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def test_an_export_is_lines_that_ingest_takes(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("bank", "export", "--data-dir", data_dir, "--out", out).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [
        {"id": "a", "text": "the text of a", "title": "T", "metadata": {"n": 1},
         "published_at": "1970-01-01T00:00:05+00:00"},
        {"id": "b", "text": "the text of b"},
    ]  # fmt: skip
    shown = run("bank", "export", "--data-dir", data_dir, "--namespace", "tenant")
    assert json.loads(shown.stdout) == {"id": "c", "text": "the text of c", "pinned": True}


def test_an_exported_file_has_the_mode_of_any_other(data_dir: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out.jsonl", tmp_path / "other"
    other.touch()
    assert run("bank", "export", "--data-dir", data_dir, "--out", out).exit_code == 0
    assert out.stat().st_mode == other.stat().st_mode
    out.chmod(0o600)
    (tmp_path / "link").symlink_to(out)
    link = tmp_path / "link"
    assert run("bank", "export", "--data-dir", data_dir, "--out", link).exit_code == 0
    assert (link.is_symlink(), out.stat().st_mode & 0o777) == (True, 0o600)


def test_an_export_to_what_is_no_file_writes_to_it(data_dir: Path) -> None:
    assert run("bank", "export", "--data-dir", data_dir, "--out", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_an_export_of_nothing_names_it(data_dir: Path) -> None:
    shown = run("bank", "export", "--data-dir", data_dir, "--namespace", "nowhere")
    assert (shown.exit_code, "'nowhere'" in shown.output) == (1, True)


def test_a_failed_export_leaves_the_file_that_was_there(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("kept")
    arguments = ["--data-dir", data_dir, "--namespace", "nowhere", "--out", out]
    assert run("bank", "export", *arguments).exit_code == 1
    assert out.read_text() == "kept"
    assert list(tmp_path.glob(".out*")) == []
    assert run("bank", "export", "--data-dir", data_dir, "--out", out).exit_code == 0
    assert len(out.read_text().splitlines()) == 2


def corrupt(data_dir: Path, name: str) -> None:
    with closing(sqlite3.connect(data_dir / "bank.sqlite3")) as database:
        database.execute("UPDATE documents SET payload = zeroblob(99) WHERE id = ?", (name,))
        database.commit()


def test_an_export_leaves_a_corrupt_record_out_and_says_so(data_dir: Path, tmp_path: Path) -> None:
    corrupt(data_dir, "b")
    out = tmp_path / "out.jsonl"
    shown = run("bank", "export", "--data-dir", data_dir, "--out", out)
    assert (shown.exit_code, [json.loads(line)["id"] for line in out.read_text().splitlines()]) == (
        1,
        ["a"],
    )
    assert "document 'b' of namespace 'default'" in shown.output
    assert "1 documents exported, 1 corrupt left out" in shown.output


def test_verify_names_a_corrupt_record(data_dir: Path) -> None:
    assert "4 documents, 0 corrupt" in run("bank", "verify", "--data-dir", data_dir).output
    corrupt(data_dir, "b")
    shown = run("bank", "verify", "--data-dir", data_dir)
    assert (shown.exit_code, "4 documents, 1 corrupt" in shown.output) == (1, True)
    assert "document 'b' of namespace 'default'" in shown.output


def test_a_snapshot_is_made_listed_verified_and_restored(data_dir: Path, tmp_path: Path) -> None:
    made = run("snapshot", "create", "s", "--data-dir", data_dir)
    assert (made.exit_code, "default: 3 documents at version 3" in made.output) == (0, True)
    assert "s  4 documents" in run("snapshot", "list", "--data-dir", data_dir).output
    assert run("snapshot", "verify", "s", "--data-dir", data_dir).exit_code == 0
    target = ["--data-dir", tmp_path / "new", "--dir", data_dir / "snapshots"]
    foreign = run("snapshot", "restore", "s", *target)
    assert (foreign.exit_code, "mac bank reindex" in foreign.output) == (1, True)
    restored = run("snapshot", "restore", "s", *target, "--as-is")
    assert (restored.exit_code, "4 documents restored" in restored.output) == (0, True)
    again = run("snapshot", "restore", "s", *target, "--as-is")
    assert (again.exit_code, "holds 3 documents" in again.output) == (1, True)
    assert run("snapshot", "restore", "s", *target, "--as-is", "--replace").exit_code == 0
    with closing(sqlite_in(tmp_path / "new")()) as store:
        assert [record.id for record in store.scan("default")] == ["a", "b", "expired"]


def test_a_damaged_snapshot_fails_verification(data_dir: Path) -> None:
    run("snapshot", "create", "s", "--data-dir", data_dir)
    shard = next((data_dir / "snapshots" / "s").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    shown = run("snapshot", "verify", "s", "--data-dir", data_dir)
    assert (shown.exit_code, shard.name in shown.output) == (1, True)


def test_where_snapshots_are_must_be_named(data_dir: Path) -> None:
    assert run("snapshot", "list").exit_code == 2
    assert run("snapshot", "create", "s").exit_code == 2
    both = run("snapshot", "create", "s", "--data-dir", data_dir, "--store-url", "redis://x/0")
    assert both.exit_code == 2


def test_a_servers_snapshots_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []
    made = {"name": "s", "left_out": [{}], "bytes": 5,
            "namespaces": [{"namespace": "n", "documents": 1, "bank_version": 2}]}  # fmt: skip

    def answer(_: httpx.Client, method: str, path: str, json: object = None) -> httpx.Response:
        asked.append((method, path, str(json)))
        body = {"snapshots": [made], "documents": 1} | made
        return httpx.Response(200, json=body, request=httpx.Request(method, "http://test"))

    monkeypatch.setattr(httpx.Client, "request", answer)
    outputs = [
        run("snapshot", *command, "--url", "http://test").output
        for command in (["create", "s"], ["list"], ["verify", "s"], ["restore", "s", "--replace"])
    ]
    assert [(method, path) for method, path, _ in asked] == [
        ("POST", "/snapshots"), ("GET", "/snapshots"),
        ("POST", "/snapshots/s/verify"), ("POST", "/snapshots/s/restore"),
    ]  # fmt: skip
    assert "n: 1 documents at version 2" in outputs[0]
    assert "1 corrupt records left out" in outputs[0]
    assert "1 documents restored" in outputs[3]


def test_a_server_that_refuses_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: httpx.Client, method: str, path: str, json: object = None) -> httpx.Response:
        body = {"code": "snapshot_exists", "detail": "there is one"}
        return httpx.Response(409, json=body, request=httpx.Request(method, "http://test"))

    monkeypatch.setattr(httpx.Client, "request", answer)
    shown = run("snapshot", "create", "s", "--url", "http://test")
    assert (shown.exit_code, "there is one" in shown.output) == (1, True)
