import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mac_core.errors import InvalidInput
from mac_core.evaluation.dataset import (
    load_distractors,
    load_questions,
    load_squad_dev,
    sample,
)


def question(name: str, *answers: str) -> dict[str, Any]:
    texts = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"id": name, "question": f" {name}? ", "answers": texts}


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Oil_crisis",
            "paragraphs": [
                {"context": "In 1973.", "qas": [question("q1", "1973", "1973", "In 1973")]},
                {"context": "Prices rose.", "qas": [question("q2", "Prices"), question("q3")]},
            ],
        },
        {
            "title": "Again",
            "paragraphs": [{"context": "In 1973.", "qas": [question("q4", "In 1973")]}],
        },
    ],
}


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(SQUAD), encoding="utf-8")
    return path


def test_a_repeated_paragraph_is_one_document(squad_file: Path) -> None:
    documents, _ = load_squad_dev(squad_file)
    assert [(d.title, d.text) for d in documents] == [
        ("Oil crisis", "In 1973."),
        ("Oil crisis", "Prices rose."),
    ]


def test_each_answerable_question_names_its_document(squad_file: Path) -> None:
    documents, questions = load_squad_dev(squad_file)
    first, second = (document.id for document in documents)
    found = [(q.id, q.text, q.references, q.document_id) for q in questions]
    assert found == [
        ("q1", "q1?", ("1973", "In 1973"), first),
        ("q2", "q2?", ("Prices",), second),
        ("q4", "q4?", ("In 1973",), first),
    ]


def test_an_xz_file_reads_the_same(squad_file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "dev.json.xz"
    packed.write_bytes(lzma.compress(squad_file.read_bytes()))
    assert load_squad_dev(packed) == load_squad_dev(squad_file)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"no json", b"\xff\xfe", b'{"data": []}'])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="foreign.json"):
        load_squad_dev(path)


def test_a_broken_xz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json.xz"
    path.write_bytes(b"not xz")
    with pytest.raises(InvalidInput, match=r"broken\.json\.xz"):
        load_squad_dev(path)


def test_sample_is_seeded_and_keeps_the_order(squad_file: Path) -> None:
    documents, questions = load_squad_dev(squad_file)
    draws = {
        tuple(q.id for q in sample(documents, questions, num_questions=2, seed=seed)[1])
        for seed in [*range(8), *range(8)]
    }
    assert draws == {("q1", "q2"), ("q1", "q4"), ("q2", "q4")}
    assert sample(documents, questions, num_questions=2, seed=3) == sample(
        documents, questions, num_questions=2, seed=3
    )


def test_limiting_questions_leaves_every_document(squad_file: Path) -> None:
    documents, questions = load_squad_dev(squad_file)
    assert sample(documents, questions, num_questions=1, seed=0)[0] == documents


def test_limiting_documents_drops_the_questions_on_others(squad_file: Path) -> None:
    documents, questions = load_squad_dev(squad_file)
    kept, asked = sample(documents, questions, num_documents=1, seed=0)
    assert {q.document_id for q in asked} == {kept[0].id}


@pytest.mark.parametrize("num_documents", [None, 1])
def test_a_draw_that_leaves_no_question_is_refused(
    squad_file: Path, num_documents: int | None
) -> None:
    documents, questions = load_squad_dev(squad_file)
    elsewhere = [replace(question, document_id="elsewhere") for question in questions]
    with pytest.raises(InvalidInput, match=f"of 3 none is on one of the {num_documents or 2} "):
        sample(documents, elsewhere, num_documents=num_documents, seed=0)


def test_questions_without_a_reference_are_kept_on_request(squad_file: Path) -> None:
    _, questions = load_squad_dev(squad_file, keep_unanswerable=True)
    assert [(q.id, bool(q.references)) for q in questions] == [
        ("q1", True),
        ("q2", True),
        ("q3", False),
        ("q4", True),
    ]


def fairytale(section: str, asked: str, *answers: str, title: str = "snow-man") -> dict[str, Any]:
    # U+2028 separates lines for str.splitlines, not in JSON lines.
    return {"context": f"{section}\u2028", "question": asked, "answers": answers, "title": title}


@pytest.fixture
def fairytale_file(tmp_path: Path) -> Path:
    rows = [
        fairytale("It was cold.", "How was it?", "cold", "cold", "very cold"),
        fairytale("The sun rose.", "What rose?", "the sun"),
        fairytale("It was cold.", "Why?"),
        fairytale("It was cold.", "How was it?", "cold"),
    ]
    path = tmp_path / "test.jsonl.xz"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(lzma.compress(lines.encode()))
    return path


def test_a_fairytale_section_is_one_document(fairytale_file: Path) -> None:
    documents, _ = load_questions(fairytale_file)
    assert [(d.title, d.text) for d in documents] == [
        ("snow man", "It was cold.\u2028"),
        ("snow man", "The sun rose.\u2028"),
    ]


def test_fairytale_questions_have_names_of_their_own_and_name_their_section(
    fairytale_file: Path,
) -> None:
    documents, questions = load_questions(fairytale_file)
    first, second = (document.id for document in documents)
    assert [(q.references, q.document_id) for q in questions] == [
        (("cold", "very cold"), first),
        (("the sun",), second),
        (("cold",), first),
    ]
    assert len({q.id for q in questions}) == 3


def test_squads_layout_is_read_where_the_name_says_no_lines(squad_file: Path) -> None:
    assert load_questions(squad_file) == load_squad_dev(squad_file)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"data": []}', b"no json", b""])
def test_foreign_lines_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"foreign\.jsonl"):
        load_questions(path)


def test_distractors_are_neither_known_nor_repeated(squad_file: Path, fairytale_file: Path) -> None:
    known = load_squad_dev(squad_file)[0][:1]
    found = load_distractors([squad_file, fairytale_file, squad_file], known=known)
    assert [document.text for document in found] == [
        "Prices rose.",
        "It was cold.\u2028",
        "The sun rose.\u2028",
    ]
    assert len({document.id for document in [*known, *found]}) == 4
