"""The command line, as far as it goes without a server process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import ATTACHED, app
from server.client import Client, IngestReport, ServerRefused, SourceDocument

RUNNER = CliRunner()
ANSWER = {
    "answer": "1932",
    "confidence": 0.75,
    "note": None,
    "sources": [{"id": "b", "score": 0.9, "title": "Bridges", "snippet": "opened in 1932"}],
}


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["serve", "--print-config"]])
def test_quick_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from server.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print([name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules])\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_own_and_attached_commands() -> None:
    shown = RUNNER.invoke(app, ["--help"]).output
    for name in ("serve", "ingest", "ask", "version", *ATTACHED):
        assert name in shown


def test_an_attached_command_is_the_other_rooms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    import typer

    room = types.ModuleType("other_room")
    room.app = typer.Typer()  # type: ignore[attr-defined]

    @room.app.callback()  # type: ignore[attr-defined]
    def top() -> None: ...

    @room.app.command()  # type: ignore[attr-defined]
    def mini(minutes: int) -> None:
        typer.echo(f"trained for {minutes}")

    monkeypatch.setitem(sys.modules, "other_room", room)
    monkeypatch.setitem(ATTACHED, "train", "other_room:app")
    result = RUNNER.invoke(app, ["train", "mini", "3"])
    assert (result.exit_code, result.output) == (0, "trained for 3\n")


def test_an_unknown_setting_stops_serve_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAC_PROT", "1")
    result = RUNNER.invoke(app, ["serve", "--print-config"])
    assert result.exit_code == 2
    assert "did you mean MAC_PORT?" in result.output


def test_print_config_shows_the_flags() -> None:
    result = RUNNER.invoke(app, ["serve", "--port", "9001", "--print-config"])
    assert "port = 9001" in result.output.splitlines()


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def answer(self: Client, payload: dict[str, Any]) -> dict[str, Any]:
        asked.append(payload)
        return ANSWER

    monkeypatch.setattr(Client, "ask", answer)
    return asked


def test_ask_prints_answer_confidence_and_sources(answered: list[dict[str, Any]]) -> None:
    result = RUNNER.invoke(app, ["ask", "When?", "--mode", "memory", "--namespace", "news"])
    assert result.exit_code == 0
    assert answered == [{"question": "When?", "mode": "memory", "namespace": "news"}]
    lines = result.output.splitlines()
    assert lines[:2] == ["1932", "confidence 0.75"]
    assert "Bridges" in lines[2]


def test_ask_without_an_answer_prints_why_and_what_was_read(
    answered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "no answer: nothing in the bank answers this"
    monkeypatch.setitem(ANSWER, "answer", None)
    monkeypatch.setitem(ANSWER, "note", note)
    result = RUNNER.invoke(app, ["ask", "When?", "--min-confidence", "0.9"])
    assert answered[0]["min_confidence"] == 0.9
    lines = result.output.splitlines()
    assert (result.exit_code, lines[:2]) == (0, [note, "confidence 0.75"])
    assert "Bridges" in lines[2]


def test_ask_refuses_a_min_confidence_that_is_no_probability(
    answered: list[dict[str, Any]],
) -> None:
    result = RUNNER.invoke(app, ["ask", "When?", "--min-confidence", "1.5"])
    assert (result.exit_code, answered) == (2, [])


@pytest.mark.usefixtures("answered")
def test_ask_json_prints_the_response() -> None:
    assert json.loads(RUNNER.invoke(app, ["ask", "When?", "--json"]).output) == ANSWER


def test_ask_refused_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Client, payload: dict[str, Any]) -> dict[str, Any]:
        raise ServerRefused("503 not_ready: starting")

    monkeypatch.setattr(Client, "ask", refuse)
    result = RUNNER.invoke(app, ["ask", "When?"])
    assert (result.exit_code, "503 not_ready: starting" in result.output) == (1, True)


def add_all(
    self: Client, batch: list[SourceDocument], namespace: str, report: IngestReport
) -> None:
    report.counts["inserted"] += len(batch)


def test_ingest_counts_what_became_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "add", add_all)
    (tmp_path / "a.txt").write_text("Fine.", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8")
    result = RUNNER.invoke(app, ["ingest", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "3 documents: 3 inserted"


def test_what_an_ingest_did_not_send_is_in_its_sum() -> None:
    report = IngestReport(num_read=17)
    report.counts["inserted"] = 12
    report.fail("a.txt", "no")
    report.not_read("b.pdf", "broken")
    assert (
        report.summary() == "17 documents: 1 failed, 12 inserted, 4 not sent; 1 could not be read"
    )
    assert IngestReport().summary() == "0 documents: nothing sent"


def test_ingest_with_a_failure_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "add", add_all)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\nbroken\n', "utf-8")
    result = RUNNER.invoke(app, ["ingest", str(tmp_path / "b.jsonl")])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 document: 1 inserted; 1 could not be read"
    assert "b.jsonl:2: not JSON" in result.output
