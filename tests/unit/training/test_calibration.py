"""Fitting the selection's scales and choosing how many documents are aggregated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mac_core.config import ConfidenceConfig
from mac_core.training.calibration import TOP_KS, calibrate, fit_scales
from mac_core.training.held_out import HeldOut
from tests.builders import tiny_bert_model
from tests.unit.networks.model_samples import never_ending
from tests.unit.training.samples import FACTS, paragraphs

DENSE, LEXICAL = 12.0, 0.8


def drawn_scores(*, questions: int = 2000, documents: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, BM25 scores, and right documents drawn from the softmax of known scales."""
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(questions, documents, generator=generator) - 0.5
    bm25 = 5.0 * torch.rand(questions, documents, generator=generator)
    chances = torch.softmax(DENSE * cosine + LEXICAL * bm25, dim=1)
    return cosine, bm25, torch.multinomial(chances, 1, generator=generator).squeeze(1)


def test_scales_that_drew_the_documents_are_found() -> None:
    dense, lexical = fit_scales(*drawn_scores())
    assert dense == pytest.approx(DENSE, rel=0.1)
    assert lexical == pytest.approx(LEXICAL, rel=0.1)


def test_scales_stay_finite_where_every_question_is_told_apart() -> None:
    cosine = torch.eye(6)
    scales = fit_scales(cosine, 10.0 * cosine, torch.arange(6))
    assert all(0.0 < scale < 1e4 for scale in scales)


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
    best = calibration.f1_by_top_k[calibration.selection.top_k]
    assert best == max(calibration.f1_by_top_k.values()) == calibration.f1_by_mode["memory"]
    assert calibration.f1_by_mode.keys() == {"memory", "none", "text", "hybrid", "oracle"}
    assert model.config.selection == calibration.selection
    assert model.config.confidence == calibration.confidence != ConfidenceConfig()
    assert calibration.confidence_quality.keys() <= {"none", "text", "memory", "hybrid"}
    assert calibration.confidence_quality["memory"].num_answers > 0
    assert (calibration.num_documents, calibration.num_questions) == (len(FACTS), 4)
