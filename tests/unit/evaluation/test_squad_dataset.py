import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from mac_core.errors import InvalidInput
from mac_core.evaluation.dataset import load_squad_dev, sample


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
