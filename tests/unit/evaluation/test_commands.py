"""Each command from options to its one JSON line, with the perfect reader as the bundle."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mac_core.evaluation import cli, plots
from mac_core.evaluation.dataset import SquadQuestion, load_questions, sample
from mac_core.training.corpora import load_fairytaleqa, split_by_article


def write_squad(path: Path, documents: Any, questions: list[SquadQuestion]) -> Path:
    paragraphs = [
        {
            "context": document.text,
            "qas": [
                {
                    "id": question.id,
                    "question": question.text,
                    "answers": [{"text": text} for text in question.references],
                }
                for question in questions
                if question.document_id == document.id
            ],
        }
        for document in documents
    ]
    path.write_text(json.dumps({"data": [{"title": "People", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture
def dev(tmp_path: Path, documents: Any, questions: Any) -> Path:
    return write_squad(tmp_path / "dev.json", documents[:4], questions)


@pytest.fixture
def train(tmp_path: Path, documents: Any, questions: Any) -> Path:
    return write_squad(tmp_path / "train.json", documents[3:], questions)


def write_stories(path: Path, titles: dict[str, str]) -> Path:
    """A section and a question for each name, of the story with its title."""
    rows = [
        {
            "context": f"{name} slept .",
            "question": f"Who is {name}?",
            "answers": ["x"],
            "title": title,
        }
        for name, title in titles.items()
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def tales(tmp_path: Path) -> Path:
    return write_stories(tmp_path / "tales.jsonl", dict.fromkeys(("Gina", "Hugo", "Ines"), "t"))


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, reader: Any) -> Any:
    monkeypatch.setattr("mac_core.networks.build.load_bundle", lambda path, **options: reader)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def line(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1], parse_constant=pytest.fail)


def test_retention_grows_by_the_files_rest_then_by_distractors(
    invoke: Any, dev: Path, train: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "retention.svg"
    values = line(
        invoke(
            "retention", "--data", dev, "--distractors", train, "--sizes", "2,4,6",
            "--top-k", 1, "--plot", plot,
        )
    )  # fmt: skip
    assert (values["dataset"], values["questions"], values["baseline_documents"]) == (
        "retention", 2, 2,
    )  # fmt: skip
    rows = [(row["documents"], row["f1"], row["f1_ratio"]) for row in values["results"]]
    assert rows == [(2, 100.0, 1.0), (4, 100.0, 1.0), (6, 100.0, 1.0)]
    assert values["distractors"][0]["file"] == "train.json"
    assert plot.exists()


def test_a_ratio_to_nothing_is_null(invoke: Any, dev: Path) -> None:
    values = line(invoke("retention", "--data", dev, "--sizes", "2,4", "--modes", "none"))
    row = values["results"][1]
    assert (row["f1"], row["f1_ratio"], row["interval_95"]["f1_ratio"]) == (0.0, None, [None] * 2)


def test_a_gain_over_one_question_has_no_interval(invoke: Any, dev: Path) -> None:
    values = line(invoke("compaction", "--data", dev, "--settings", "bits:1", "--limit", 1))
    assert values["results"][0]["interval_95"]["f1_gain"] == [None, None]


def test_retention_past_the_last_document_is_refused(invoke: Any, dev: Path) -> None:
    refused = invoke("retention", "--data", dev, "--sizes", "2,7")
    assert refused.exit_code == 1
    assert "7 documents was asked for, there are 4" in refused.stderr


@pytest.mark.parametrize("sizes", ["two", "2,,4", ""])
def test_sizes_that_are_no_numbers_are_a_usage_error(invoke: Any, dev: Path, sizes: str) -> None:
    assert invoke("retention", "--data", dev, "--sizes", sizes).exit_code == 2


def test_retention_with_other_distractors_does_not_go_on_from_kept_answers(
    invoke: Any, dev: Path, train: Path, tales: Path, tmp_path: Path
) -> None:
    words = ("retention", "--data", dev, "--sizes", "2,5", "--resume", tmp_path / "kept")
    assert invoke(*words, "--distractors", train).exit_code == 0
    refused = invoke(*words, "--distractors", tales)
    assert refused.exit_code == 1
    assert "holds another run: distractors differ" in refused.stderr


def test_a_cache_is_learned_into_once_for_all_commands(
    invoke: Any, reader: Any, dev: Path, train: Path, tales: Path, tmp_path: Path
) -> None:
    cache = ("--cache", tmp_path / "cache", "--json")
    line(invoke("retention", "--data", dev, "--distractors", train, "--sizes", "2,6", *cache))
    reader.num_amortized.clear()
    line(invoke("locality", "--data", dev, "--questions", tales, *cache))
    line(invoke("squad-seq", "--data", dev, "--modes", "memory", *cache))
    assert reader.num_amortized == []


def test_locality_asks_both_files_and_reports_the_threshold(
    invoke: Any, dev: Path, tales: Path
) -> None:
    words = ("locality", "--data", dev, "--questions", tales, "--limit", 2)
    values = line(invoke(*words, "--min-confidence", 0.5))
    rows = [(r["asked"], r["questions"], r["local"], r["abstained"]) for r in values["results"]]
    assert rows == [("outside", 2, 100.0, 0.0), ("inside", 2, 0.0, 0.0)]
    assert {row["min_confidence"] for row in values["results"]} == {0.5}
    assert values["questions_from"][0]["file"] == "tales.jsonl"


def test_unanswerable_reports_both_modes_and_draws(
    invoke: Any, reader: Any, documents: Any, questions: Any, tmp_path: Path
) -> None:
    hopeless = SquadQuestion(id="none", text="Why does Ada dwell?", references=(), document_id="d0")
    reader.confidences = {hopeless.text: 0.1}
    data = write_squad(tmp_path / "v2.json", documents, [*questions, hopeless])
    plot, out = tmp_path / "risk.svg", tmp_path / "answers.jsonl"
    values = line(
        invoke("unanswerable", "--data", data, "--min-confidence", 0.5, "--plot", plot,
               "--out", out)
    )  # fmt: skip
    assert (values["answerable"], values["unanswerable"]) == (6, 1)
    assert list(values["results"]) == ["memory", "hybrid"]
    memory = values["results"]["memory"]
    assert (memory["auroc_answerable"], memory["coverage_at_target"]) == (100.0, 100.0)
    assert memory["everything"]["squad2_em"] == 85.71
    assert memory["at_bundle"]["squad2_em"] == 100.0
    assert memory["curve"][-1][1] == 100.0
    assert plot.exists()
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert {row["confidence"] for row in rows if row["id"] == "none"} == {0.1}


def test_compaction_compares_settings_and_draws(invoke: Any, dev: Path, tmp_path: Path) -> None:
    plot = tmp_path / "compaction.svg"
    values = line(
        invoke("compaction", "--data", dev, "--settings", "bits:1,bits:8,average:8@8",
               "--limit", 3, "--plot", plot)
    )  # fmt: skip
    assert (values["baseline"], values["questions"], values["documents"]) == ("bits:1", 3, 4)
    assert [one["setting"] for one in values["results"]] == ["bits:1", "bits:8", "average:8@8"]
    assert {one["f1_gain"] for one in values["results"]} == {0.0}
    assert plot.exists()


@pytest.mark.parametrize("settings", ["shrink:4", "bits:1,bits:1"])
def test_compaction_settings_that_cannot_be_are_one_line(
    invoke: Any, dev: Path, settings: str
) -> None:
    refused = invoke("compaction", "--data", dev, "--settings", settings)
    assert refused.exit_code == 1
    assert len(refused.stderr.strip().splitlines()) == 1


def test_transfer_scores_fairytales_as_squad_seq_does(invoke: Any, tales: Path) -> None:
    values = line(invoke("transfer", "--data", tales, "--modes", "memory"))
    assert (values["dataset"], values["documents"], values["questions"]) == ("transfer", 3, 3)
    assert values["results"]["memory"]["f1"] == 0.0
    assert values["retrieval"]["fused"]["recall@8"] == 100.0


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One whose training left four articles of ten out."""
    path = tmp_path / "bundle"
    path.mkdir()
    training = {"options": {"seed": 0, "held_out_fraction": 0.4}}
    (path / "manifest.json").write_text(json.dumps({"training": training}))
    return path


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """Five stories of a section and a question each."""
    names = ("Gina", "Hugo", "Ines", "Jana", "Karl")
    return write_stories(tmp_path / "stories.jsonl", {name: name for name in names})


def test_transfer_to_held_out_articles_asks_of_those_alone(
    invoke: Any, stories: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ("--held-out", "--bundle", bundle, "--modes", "memory", "--out", out)
    values = line(invoke("transfer", "--data", stories, *words))
    assert (values["dataset"], values["documents"]) == ("transfer-held-out", 5)
    _, left_out = split_by_article(load_fairytaleqa(stories), held_out_fraction=0.4, seed=0)
    asked = [json.loads(row)["question"] for row in out.read_text().splitlines()]
    assert sorted(asked) == sorted(f"Who is {one.article}?" for one in left_out)
    assert len(asked) == 2


def test_a_corpus_of_which_nothing_was_left_out_is_refused(
    invoke: Any, tales: Path, bundle: Path
) -> None:
    refused = invoke("transfer", "--data", tales, "--held-out", "--bundle", bundle)
    assert refused.exit_code == 1  # one story: a share of 0.4 is none of it
    assert "left out" in refused.stderr


def test_held_out_articles_of_which_none_is_drawn_are_refused_before_learning(
    invoke: Any, reader: Any, stories: Path, bundle: Path
) -> None:
    _, left_out = split_by_article(load_fairytaleqa(stories), held_out_fraction=0.4, seed=0)
    documents, questions = load_questions(stories)
    texts = {paragraph.text for paragraph in left_out}
    seed = next(
        seed
        for seed in range(20)
        if sample(documents, questions, num_documents=1, seed=seed)[0][0].text not in texts
    )
    words = ("--held-out", "--bundle", bundle, "--max-documents", 1, "--seed", seed)
    refused = invoke("transfer", "--data", stories, *words)
    assert refused.exit_code == 1
    assert "no question is left to ask" in refused.stderr
    assert reader.num_amortized == []


@pytest.mark.parametrize(
    "words",
    [
        ("squad-seq", "--max-documents", 1),
        ("locality", "--max-documents", 1),
        ("unanswerable", "--max-documents", 1),
        ("retention", "--sizes", "1,2"),
    ],
)
def test_documents_without_a_question_are_refused_before_learning(
    invoke: Any,
    reader: Any,
    documents: Any,
    questions: Any,
    tales: Path,
    tmp_path: Path,
    words: Any,
) -> None:
    data = write_squad(tmp_path / "few.json", documents, questions[-1:])
    more = ["--questions", tales] * (words[0] == "locality")
    refused = invoke(words[0], "--data", data, *more, *words[1:])
    assert refused.exit_code == 1
    assert "no question" in refused.stderr
    assert reader.num_amortized == []


@pytest.mark.parametrize(
    ("words", "needs_more"),
    [
        (("retention", "--sizes", "2,4"), False),
        (("unanswerable",), False),
        (("compaction", "--settings", "bits:1,merge:8@8"), False),
        (("transfer", "--modes", "memory"), False),
        (("squad-seq", "--modes", "memory"), False),
        (("locality",), True),
    ],
)
def test_every_command_ends_with_its_line_and_says_how_to_repeat_it(
    invoke: Any, dev: Path, tales: Path, words: Any, needs_more: bool
) -> None:
    name, *rest = words
    more = ["--questions", tales] * needs_more
    shown = invoke(name, "--data", dev, *more, *rest)
    bare = invoke(name, "--data", dev, *more, *rest, "--json")
    assert len(bare.stdout.splitlines()) == 1
    assert len(shown.stdout.splitlines()) > 8
    values = line(shown)
    typed = " ".join(rest)
    assert values["command"].startswith(f"mac evaluate {name} --data dev.json")
    assert typed in values["command"]
    assert values["command"] in shown.stdout.replace("\n", " ")
    assert {"commit", "seed", "config_fingerprint", "device"} <= set(values)


@pytest.mark.parametrize("name", ["retention", "unanswerable", "compaction"])
def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    invoke: Any, reader: Any, dev: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda module: None)
    refused = invoke(name, "--data", dev, "--plot", "curve.svg")
    assert refused.exit_code == 1
    assert "mac-server[plot]" in refused.stderr
    assert reader.num_amortized == []
