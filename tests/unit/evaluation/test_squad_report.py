import json
from dataclasses import replace
from io import StringIO
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mac_core.evaluation import cli
from mac_core.evaluation.origin import config_fingerprint, file_sha256, python_sha256
from mac_core.evaluation.report import card, json_line, to_json_line, write_predictions
from mac_core.evaluation.results import (
    Evaluation,
    Origin,
    Prediction,
    score_mode,
    score_ranks,
)


@pytest.fixture
def predictions(questions: Any) -> list[Prediction]:
    """Four exactly right, one a longer answer, one wrong."""
    said = ["Ulm", "oslo", "Rome.", "the Bath", "Cadiz Spain", "Paris"]
    return [
        Prediction(
            question_id=question.id,
            answer=answer,
            confidence=0.9,
            seconds=0.5,
            batch_size=4,
            num_threads=1,
        )
        for question, answer in zip(questions, said, strict=True)
    ]


@pytest.fixture
def evaluation(questions: Any, predictions: list[Prediction], origin: Origin) -> Evaluation:
    return Evaluation(
        dataset="squad-seq",
        num_documents=6,
        num_questions=6,
        num_chunks=7,
        num_learned_chunks=5,
        learn_seconds=1.5,
        results={"memory": score_mode(questions, predictions)},
        retrieval={"fused": score_ranks([0, 0, 0, 3, 9, None])},
        origin=origin,
    )


def printed(evaluation: Evaluation) -> str:
    console = Console(file=StringIO(), width=cli.FILE_WIDTH)
    console.print(card(evaluation))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_line_holds_what_the_contract_says(evaluation: Evaluation) -> None:
    line = to_json_line(evaluation)
    values = json.loads(line)
    assert "\n" not in line
    assert (values["dataset"], values["documents"], values["questions"]) == ("squad-seq", 6, 6)
    memory = values["results"]["memory"]
    # F1 of "Cadiz Spain" against "Cadiz": precision 1/2, recall 1, so 2/3
    assert memory["strict_em"] == 66.67
    assert memory["prefix_em"] == 83.33
    assert memory["f1"] == round(100 * (4 + 2 / 3) / 6, 2)
    assert (memory["questions"], memory["seconds"], memory["questions_per_s"]) == (6, 3.0, 2.0)


def test_learning_is_counted_and_timed_without_what_a_cache_held(evaluation: Evaluation) -> None:
    values = json.loads(to_json_line(evaluation))
    assert (values["chunks"], values["learned_chunks"], values["learn_s"]) == (7, 5, 1.5)
    assert "5 of 7 chunks learned in 1.5 s" in printed(evaluation)


def test_what_was_read_from_a_cache_has_no_time_of_learning(evaluation: Evaluation) -> None:
    cached = replace(evaluation, num_learned_chunks=0, learn_seconds=None)
    values = json.loads(to_json_line(cached))
    assert (values["learned_chunks"], values["learn_s"]) == (0, None)
    assert "7 chunks, all learned by earlier runs" in printed(cached)


def test_answers_timed_in_several_ways_have_no_rate(
    evaluation: Evaluation, questions: Any, predictions: list[Prediction]
) -> None:
    mixed = [replace(predictions[0], num_threads=8), *predictions[1:]]
    untimed = replace(evaluation, results={"memory": score_mode(questions, mixed)})
    memory = json.loads(to_json_line(untimed))["results"]["memory"]
    assert (memory["seconds"], memory["questions_per_s"]) == (None, None)
    assert "No seconds" in printed(untimed)


def test_a_line_is_json_whatever_was_measured() -> None:
    values = {"a": inf, "b": [-inf, 1.5, {"c": nan}], "d": (True, None, "Infinity", 3)}
    expected = {"a": None, "b": [None, 1.5, {"c": None}], "d": [True, None, "Infinity", 3]}
    assert json.loads(json_line(values), parse_constant=pytest.fail) == expected


def test_the_line_holds_intervals_around_every_score(evaluation: Evaluation) -> None:
    memory = json.loads(to_json_line(evaluation))["results"]["memory"]
    assert set(memory["interval_95"]) == {"strict_em", "prefix_em", "f1", "f1_shortest"}
    assert all(low <= memory[name] <= high for name, (low, high) in memory["interval_95"].items())


def test_the_line_holds_recall_and_origin(evaluation: Evaluation, origin: Origin) -> None:
    values = json.loads(to_json_line(evaluation))
    assert values["retrieval"] == {
        "fused": {"recall@1": 50.0, "recall@8": 66.67, "recall@32": 83.33}
    }
    assert (values["commit"], values["seed"]) == (origin.commit, 3)
    assert {"config_fingerprint", "device", "num_threads", "date"} <= set(values)


def test_the_card_shows_scores_with_intervals_and_origin(evaluation: Evaluation) -> None:
    text = printed(evaluation)
    assert "66.67 [" in text
    assert "recall@32" in text
    assert "commit " + "c" * 40 in text
    assert "…" not in text  # nothing cut


def test_written_answers_stand_beside_their_references(
    tmp_path: Path, questions: Any, predictions: list[Prediction]
) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    write_predictions(path, questions, {"memory": predictions})
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    assert (rows[4]["answer"], rows[4]["strict_em"], rows[4]["f1"]) == (
        "Cadiz Spain",
        False,
        0.6667,
    )


@pytest.fixture
def squad_file(tmp_path: Path, documents: Any, questions: Any) -> Path:
    paragraphs = [
        {
            "context": document.text,
            "qas": [
                {
                    "id": question.id,
                    "question": question.text,
                    "answers": [{"text": text} for text in question.references],
                }
            ],
        }
        for document, question in zip(documents, questions, strict=True)
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [{"title": "People", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, reader: Any, squad_file: Path) -> Any:
    monkeypatch.setattr("mac_core.networks.build.load_bundle", lambda path, **options: reader)

    def invoke(*options: str) -> Any:
        return CliRunner().invoke(cli.app, ["squad-seq", "--data", str(squad_file), *options])

    return invoke


def test_the_command_ends_with_the_line_and_json_prints_nothing_else(command: Any) -> None:
    shown = command("--modes", "none,memory")
    bare = command("--modes", "none,memory", "--json")
    assert (shown.exit_code, bare.exit_code) == (0, 0)
    assert list(json.loads(shown.stdout.splitlines()[-1])["results"]) == ["none", "memory"]
    assert len(shown.stdout.splitlines()) > 10
    assert json.loads(bare.stdout)["results"]["memory"]["strict_em"] == 100.0


def test_limit_keeps_every_document_and_is_seeded(command: Any, tmp_path: Path) -> None:
    asked = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        options = ("--limit", "3", "--seed", seed, "--modes", "none", "--out", str(out), "--json")
        values = json.loads(command(*options).stdout)
        assert (values["documents"], values["questions"]) == (6, 3)
        asked.append([json.loads(line)["id"] for line in out.read_text().splitlines()])
    assert asked[0] == asked[1] != asked[2]


def test_a_finished_run_resumed_asks_nothing(command: Any, reader: Any, tmp_path: Path) -> None:
    options = ("--modes", "memory", "--json", "--resume", str(tmp_path / "kept"))
    first = json.loads(command(*options).stdout)
    reader.batches.clear()
    second = json.loads(command(*options).stdout)
    assert reader.batches == []
    assert second["results"] == first["results"]


def test_answers_kept_with_other_threads_or_batches_have_no_rate(
    command: Any, tmp_path: Path
) -> None:
    options = ("--modes", "memory", "--json", "--resume", str(tmp_path / "kept"))
    timed = json.loads(command(*options).stdout)["results"]["memory"]
    again = json.loads(command(*options, "--batch-size", "3").stdout)["results"]["memory"]
    assert timed["questions_per_s"] > 0.0
    assert (again["seconds"], again["questions_per_s"]) == (None, None)
    assert again["f1"] == timed["f1"]


def test_a_directory_of_another_run_is_refused(command: Any, tmp_path: Path) -> None:
    kept = ("--resume", str(tmp_path / "kept"), "--modes", "none")
    assert command(*kept).exit_code == 0
    refused = command(*kept, "--top-k", "1")
    assert refused.exit_code == 1
    assert "holds another run: top_k differ" in refused.stderr


def test_answers_of_other_code_are_refused_whatever_the_commit(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All trees that differ from a commit have one name, and an install has none.
    kept = ("--resume", str(tmp_path / "kept"), "--modes", "none")
    monkeypatch.setattr("mac_core.evaluation.origin.source_commit", lambda: "unknown")
    assert command(*kept).exit_code == 0
    monkeypatch.setattr("mac_core.evaluation.origin.code_sha256", lambda: "e" * 64)
    refused = command(*kept)
    assert refused.exit_code == 1
    assert "holds another run: code_sha256 differ" in refused.stderr


def test_answers_of_another_commit_of_the_same_code_are_gone_on_from(
    command: Any, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ("--resume", str(tmp_path / "kept"), "--modes", "none")
    assert command(*kept).exit_code == 0
    reader.batches.clear()
    monkeypatch.setattr("mac_core.evaluation.origin.source_commit", lambda: "unknown")
    assert command(*kept).exit_code == 0
    assert reader.batches == []


@pytest.mark.parametrize("modes", ["memory,nonsense", "memory,memory", ""])
def test_wrong_modes_are_a_usage_error(command: Any, modes: str) -> None:
    assert command("--modes", modes).exit_code == 2


def test_a_fingerprint_is_of_the_configuration(reader: Any) -> None:
    config = reader.config
    deeper = replace(config.selection, top_k=config.selection.top_k + 1)
    configs = [config, replace(config, name="other"), replace(config, selection=deeper)]
    assert len({config_fingerprint(one) for one in configs}) == 3
    assert config_fingerprint(config) == config_fingerprint(replace(config))
    assert len(config_fingerprint(config)) == 64


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("a.py", "inner/b.py", "inner/c.json"):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "package"


@pytest.mark.parametrize("name", ["a.py", "inner/b.py", "inner/new.py"])
def test_code_is_named_by_every_file_of_it(package: Path, name: str) -> None:
    before = python_sha256(package)
    (package / name).write_text("x = 1\n")
    assert python_sha256(package) != before


def test_code_is_named_by_where_its_files_are(package: Path) -> None:
    before = python_sha256(package)
    (package / "inner" / "b.py").rename(package / "b.py")
    assert python_sha256(package) != before


def test_what_is_no_code_does_not_name_it(package: Path) -> None:
    before = python_sha256(package)
    (package / "inner" / "c.json").write_text("{}")
    assert python_sha256(package) == before
    assert len(before) == 64


def test_data_is_named_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea")
