"""Facts that change: the file, whose answer it is, and what dates do to a model that reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mac_core.bundles import bundle_path
from mac_core.errors import InvalidInput
from mac_core.evaluation.conflicts import (
    Conflict,
    ConflictsEvaluation,
    load_conflicts,
    run_conflicts,
    whose_answer,
)
from mac_core.evaluation.conflicts_report import card, to_json_line
from mac_core.evaluation.results import Origin
from mac_core.networks.build import load_bundle
from tests.unit.engine.fakes import FakeModel

SHIPPED = Path(__file__).parents[3] / "deploy" / "demo" / "conflicts.jsonl"
ROW = {
    "id": "vault",
    "question": "What is the code of the vault?",
    "older": {
        "text": "The code of the vault is Alpha.",
        "answer": "Alpha",
        "published_at": "2020-01-01T00:00:00Z",
    },
    "newer": {
        "text": "The code of the vault is Beta.",
        "answer": "Beta",
        "published_at": "2022-01-01T00:00:00Z",
    },
    "other": {
        "question": "Where does the ferry to Skye dock?",
        "text": "The ferry to Skye does dock at Mallaig.",
        "answer": "Mallaig",
        "published_at": "2023-01-01T00:00:00Z",
    },
}


def written(path: Path, row: Any) -> Path:
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.fixture
def conflict(tmp_path: Path) -> Conflict:
    (found,) = load_conflicts(written(tmp_path / "c.jsonl", ROW))
    return found


@pytest.fixture
def evaluation(conflict: Conflict, origin: Origin) -> ConflictsEvaluation:
    once = replace(origin, top_k=1)
    return run_conflicts(FakeModel(), [conflict], modes=("memory", "text"), origin=once)


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(InvalidInput, match=r"c\.jsonl is empty"):
        load_conflicts(tmp_path / "c.jsonl")


def test_with_dates_the_newer_one_speaks_and_as_of_then_the_older(
    evaluation: ConflictsEvaluation,
) -> None:
    said = {
        (result.mode, result.asked): max(result.says, key=lambda who: result.says[who].mean)
        for result in evaluation.results
    }
    for mode in ("memory", "text"):
        assert said[mode, "latest"] == "newer"
        assert said[mode, "as of"] == "older"
        assert said[mode, "latest, other"] == said[mode, "without dates, other"] == "other"
    assert {result.num_questions for result in evaluation.results} == {1}


def test_the_report_has_every_row_and_its_origin(evaluation: ConflictsEvaluation) -> None:
    line = json.loads(to_json_line(evaluation, command="mac evaluate conflicts"))
    assert (line["dataset"], line["documents"], len(line["results"])) == ("conflicts", 3, 10)
    assert line["results"][0]["says"]["newer"] == 100.0
    assert line["commit"] == "c" * 40
    assert card(evaluation, command="x") is not None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It is Beta.", "newer"), ("alpha", "older"), ("at Mallaig", "other"),
        ("Alpha or Beta", "neither"), ("", "neither"), ("Betatron", "neither"),
    ],
)  # fmt: skip
def test_whose_answer_it_is(conflict: Conflict, answer: str, expected: str) -> None:
    assert whose_answer(conflict, answer) == expected


@pytest.mark.parametrize(
    "row", [{}, [], ROW | {"older": {}}, ROW | {"older": ROW["newer"]}, "x"],
)  # fmt: skip
def test_a_line_that_is_no_conflict_is_named(tmp_path: Path, row: Any) -> None:
    with pytest.raises(InvalidInput, match=r"c\.jsonl:1"):
        load_conflicts(written(tmp_path / "c.jsonl", row))


def test_the_shipped_set_is_whole() -> None:
    pairs = load_conflicts(SHIPPED)
    assert len(pairs) == 24
    assert len({pair.question for pair in pairs}) == 24
    for pair in pairs:
        texts = [statement.document.text for statement in pair.statements]
        answers = [statement.answer for statement in pair.statements]
        assert all(answer in text for answer, text in zip(answers, texts, strict=True))
        assert len(set(answers)) == 3


def test_the_bundle_that_ships_answers_with_the_newer_one(origin: Origin) -> None:
    # Limits that fitted one bundle did not fit the next four, and nothing said so: 79 to 42 %.
    model = load_bundle(bundle_path("mini"))
    shipped = replace(origin, top_k=model.config.selection.top_k, batch_size=16, max_new_tokens=32)
    evaluation = run_conflicts(
        model, load_conflicts(SHIPPED), modes=("memory", "text"), origin=shipped
    )
    shares = {(result.mode, result.asked): result.says for result in evaluation.results}
    for mode in ("memory", "text"):  # ranked with late interaction, and by BM25 alone
        assert shares[mode, "latest"]["newer"].mean > 0.66
        assert shares[mode, "latest"]["other"].mean < 0.1
        assert shares[mode, "as of"]["older"].mean > 0.8
        alone = shares[mode, "without dates, other"]["other"].mean
        assert shares[mode, "latest, other"]["other"].mean >= alone - 0.05
