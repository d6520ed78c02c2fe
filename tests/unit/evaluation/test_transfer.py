import json
from pathlib import Path
from typing import Any

import pytest

from mac_core.errors import CheckpointError, InvalidInput
from mac_core.evaluation.dataset import load_questions
from mac_core.evaluation.transfer import held_out_questions, training_options
from mac_core.training.corpora import load_squad, split_by_article


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten articles of one paragraph and question each."""
    articles = [
        {
            "title": f"Article_{i}",
            "paragraphs": [
                {
                    "context": f"Text {i}.",
                    "qas": [
                        {
                            "id": f"q{i}",
                            "question": "Which?",
                            "answers": [{"text": str(i), "answer_start": 5}],
                        }
                    ],
                }
            ],
        }
        for i in range(10)
    ]
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def kept(path: Path, **options: Any) -> set[str]:
    found = held_out_questions(path, *load_questions(path), options=options)
    return {question.id for question in found}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_articles_that_training_leaves_out_are_the_ones_asked_of(
    corpus: Path, seed: int
) -> None:
    _, held_out = split_by_article(load_squad(corpus), held_out_fraction=0.3, seed=seed)
    expected = {f"q{paragraph.article.removeprefix('Article_')}" for paragraph in held_out}
    assert len(expected) == 3
    assert kept(corpus, seed=seed, held_out_fraction=0.3) == expected
    assert kept(corpus, seed=7, split_seed=seed, held_out_fraction=0.3) == expected


def test_nothing_left_out_is_refused_with_the_reason(corpus: Path) -> None:
    with pytest.raises(InvalidInput, match=r"corpus\.json.*0\.04 of 10 articles"):
        kept(corpus, seed=0, held_out_fraction=0.04)


def test_options_come_from_the_manifest(tmp_path: Path) -> None:
    options = {"seed": 1, "held_out_fraction": 0.1}
    (tmp_path / "manifest.json").write_text(json.dumps({"training": {"options": options}}))
    assert training_options(tmp_path) == options


@pytest.mark.parametrize("manifest", [{}, {"training": {}}, {"training": {"options": {}}}])
def test_a_bundle_that_names_no_split_is_refused(tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="does not say"):
        training_options(tmp_path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        training_options(tmp_path)
