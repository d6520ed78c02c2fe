"""The demo's texts, its questions, and the rule by which it counts."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "deploy" / "demo"


def read(name: str) -> list[dict[str, Any]]:
    lines = (DEMO / name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


DOCUMENTS = read("documents.jsonl")
QUESTIONS = read("questions.jsonl")


@pytest.fixture(scope="module")
def scoring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_scoring", DEMO / "scoring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_enough_documents_on_several_subjects() -> None:
    assert len(DOCUMENTS) >= 30
    assert len({document["metadata"]["subject"] for document in DOCUMENTS}) >= 8
    assert max(Counter(document["id"] for document in DOCUMENTS).values()) == 1
    assert max(Counter(document["text"] for document in DOCUMENTS).values()) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["id"])
def test_document_is_a_paragraph_with_source_and_licence(document: dict[str, Any]) -> None:
    assert 40 <= len(document["text"].split()) <= 200
    assert document["metadata"]["source"].startswith(("OpenStax, ", "SQuAD 1.1 dev, "))
    assert document["metadata"]["licence"] in {"CC BY 4.0", "CC BY-SA 4.0"}
    assert document["metadata"]["licence"] in (DEMO / "LICENSES.md").read_text(encoding="utf-8")


def test_there_are_enough_questions_with_a_document_each() -> None:
    assert len(QUESTIONS) >= 12
    assert len({question["document"] for question in QUESTIONS}) == len(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["document"])
def test_answer_stands_in_its_document_and_not_in_title_or_question(
    question: dict[str, Any], scoring: ModuleType
) -> None:
    [document] = [item for item in DOCUMENTS if item["id"] == question["document"]]
    text, title, asked = map(
        scoring.normalize, (document["text"], document["title"], question["question"])
    )
    accepted = [scoring.normalize(answer) for answer in question["answers"]]
    assert any(scoring.holds(text, answer) for answer in accepted)
    assert not any(scoring.holds(title, answer) for answer in accepted)
    assert not any(scoring.holds(asked, answer) for answer in accepted)


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("Li Meng", True),
        ("li meng, a scholar", True),
        ("The Li Meng.", True),
        ("Li Meng was the one who taught him at court", False),  # ten words
        ("Li Mengs", False),
        ("Meng", False),
        ("", False),
    ],
)
def test_demo_counts_whole_words_of_short_answers(
    answer: str, is_correct: bool, scoring: ModuleType
) -> None:
    assert scoring.is_correct(answer, ["Li Meng"]) is is_correct


def test_no_answer_is_not_correct(scoring: ModuleType) -> None:
    assert not scoring.is_correct(None, ["the dam"])


def test_an_accepted_answer_longer_than_the_limit_still_counts(scoring: ModuleType) -> None:
    long = "one two three four five six seven eight nine ten"
    assert scoring.is_correct(long, [long])
