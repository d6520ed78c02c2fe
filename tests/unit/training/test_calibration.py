"""Fitting the selection's scales and choosing how many documents are aggregated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.config import ConfidenceConfig
from mac_core.evaluation.learned import learn_documents
from mac_core.memory.bank import MemoryBank
from mac_core.networks.model import MacModel
from mac_core.training.calibration import (
    TOP_KS,
    ScaleName,
    calibrate,
    fewest,
    fit_scales,
    scores_of,
)
from mac_core.training.held_out import HeldOut
from tests.builders import tiny_bert_model, tiny_latent_model
from tests.unit.networks.model_samples import never_ending
from tests.unit.training.samples import FACTS, paragraphs


@pytest.mark.parametrize(
    ("f1", "top_k"),
    [({1: 35.0, 2: 35.9, 4: 36.0}, 1), ({1: 34.9, 2: 35.0, 4: 36.0}, 2), ({1: 30.0, 2: 29.9}, 1)],
)
def test_no_more_documents_are_read_than_a_point_of_f1_is_worth(
    f1: dict[int, float], top_k: int
) -> None:
    assert fewest(f1) == top_k


SCALES: dict[ScaleName, float] = {"dense_scale": 12.0, "bm25_scale": 0.8, "late_scale": 1.5}


def drawn_scores(
    names: Sequence[ScaleName], *, questions: int = 2000, documents: int = 12
) -> tuple[dict[ScaleName, Tensor], Tensor]:
    """Scores, and right entries drawn from the softmax of their sum under known scales."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(questions, documents, generator=generator) * 5.0 / SCALES[name]
        for name in names
    }
    chances = torch.softmax(sum(SCALES[name] * scores[name] for name in names), dim=1)
    drawn = torch.multinomial(chances, 1, generator=generator)  # (questions, 1)
    return scores, torch.arange(documents) == drawn


@pytest.mark.parametrize(
    "names", [("dense_scale", "bm25_scale"), ("dense_scale", "bm25_scale", "late_scale")]
)
def test_scales_that_drew_the_documents_are_found(names: tuple[ScaleName, ...]) -> None:
    found = fit_scales(*drawn_scores(names))
    assert found == pytest.approx({name: SCALES[name] for name in names}, rel=0.1)


def test_scales_are_found_whichever_chunk_of_a_document_answers() -> None:
    names: tuple[ScaleName, ...] = ("dense_scale", "bm25_scale")
    scores, drawn = drawn_scores(names, questions=8000)
    # Documents of three chunks each: known is which of them holds the answer, not where.
    right = drawn.unflatten(1, (-1, 3)).any(dim=2).repeat_interleave(3, dim=1)
    found = fit_scales(scores, right)
    assert found == pytest.approx({name: SCALES[name] for name in names}, rel=0.1)


def test_scales_stay_finite_where_every_question_is_told_apart() -> None:
    cosine = torch.eye(6)
    scores: dict[ScaleName, Tensor] = {"dense_scale": cosine, "bm25_scale": 10.0 * cosine}
    assert all(0.0 < scale < 1e4 for scale in fit_scales(scores, cosine.bool()).values())


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (tiny_bert_model, {"dense_scale", "bm25_scale"}),
        (tiny_latent_model, {"dense_scale", "bm25_scale", "late_scale"}),
    ],
)
def test_scores_are_of_every_stage_that_the_bundle_selects_by(
    build: Callable[[], MacModel], names: set[str]
) -> None:
    model, held_out = build(), HeldOut.of(paragraphs())
    bank = MemoryBank(model.config.selection)
    view = learn_documents(model, bank, held_out.documents, batch_size=4)
    scores, right = scores_of(model, view, held_out.questions)
    assert scores.keys() == names
    shape = (len(held_out.questions), len(view.entries))
    assert {tuple(score.shape) for score in scores.values()} == {shape}
    found = [view.entries[row].document_id for row in right.int().argmax(dim=1).tolist()]
    assert found == [question.document_id for question in held_out.questions]


def test_every_chunk_of_the_right_document_is_right() -> None:
    model = tiny_bert_model()
    first, *others = paragraphs()
    held_out = HeldOut.of([replace(first, text=" ".join([first.text] * 30)), *others])
    bank = MemoryBank(model.config.selection)
    view = learn_documents(model, bank, held_out.documents, batch_size=4)
    _, right = scores_of(model, view, held_out.questions)
    assert len(view.entries) > len(FACTS)
    wanted = [
        [entry.document_id == question.document_id for entry in view.entries]
        for question in held_out.questions
    ]
    assert right.tolist() == wanted


def test_held_out_paragraphs_become_documents_and_their_answerable_questions() -> None:
    held_out = HeldOut.of(paragraphs())
    assert [document.text for document in held_out.documents] == [text for text, _, _ in FACTS]
    assert len({document.id for document in held_out.documents}) == len(FACTS)
    for question in held_out.questions:
        document = next(d for d in held_out.documents if d.id == question.document_id)
        assert all(answer in document.text.lower() for answer in question.references)


def test_sample_is_seeded_and_without_replacement() -> None:
    held_out = HeldOut.of(paragraphs())
    few = held_out.sample(3, seed=1)
    assert few == held_out.sample(3, seed=1)
    assert len({question.id for question in few}) == 3
    assert set(held_out.sample(99, seed=1)) == set(held_out.questions)


def test_chosen_settings_are_the_best_measured_and_the_models_own_from_then_on() -> None:
    model = never_ending(tiny_bert_model())  # an untrained one answers nothing
    calibration = calibrate(model, HeldOut.of(paragraphs()), num_questions=4, seed=0)
    assert tuple(calibration.f1_by_top_k) == TOP_KS
    assert calibration.selection.top_k == fewest(calibration.f1_by_top_k)
    found = calibration.f1_by_top_k[calibration.selection.top_k]
    assert found == calibration.f1_by_mode["memory"]
    assert calibration.f1_by_mode.keys() == {"memory", "none", "text", "hybrid", "oracle"}
    assert model.config.selection == calibration.selection
    assert model.config.confidence == calibration.confidence != ConfidenceConfig()
    assert calibration.confidence_quality.keys() <= {"none", "text", "memory", "hybrid"}
    assert calibration.confidence_quality["memory"].num_answers > 0
    assert (calibration.num_documents, calibration.num_questions) == (len(FACTS), 4)
