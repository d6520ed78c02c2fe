"""The second stage of selection: late interaction decides among the first stage's candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mac_core.config import AggregationConfig
from mac_core.engine.ranking import rank
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.learned import learn_documents
from mac_core.memory.bank import MemoryBank, Selected
from mac_core.types import Document, Question
from tests.unit.engine.fakes import CONFIG, FakeModel

SCALE = 0.5
TEXTS = ("Bergen is a city by the sea.", "Bergen is", "Bergen is a city of rain and of fish.")


def candidates(*scores: float) -> list[Selected]:
    return [
        Selected(entry=object(), score=score, log_prior=0.0, cosine=0.1)  # type: ignore[arg-type]
        for score in scores
    ]


def test_late_interaction_is_added_and_the_prior_is_of_what_stays() -> None:
    first, second, third = candidates(3.0, 2.0, 1.0)
    ranked = rank([first, second, third], torch.tensor([0.0, 1.0, 6.0]), late_scale=SCALE, top_k=2)
    assert [chosen.entry for chosen in ranked] == [third.entry, first.entry]
    assert [chosen.score for chosen in ranked] == [4.0, 3.0]
    assert [chosen.late for chosen in ranked] == [6.0, 0.0]
    priors = torch.tensor([4.0, 3.0]).log_softmax(0).tolist()
    assert [chosen.log_prior for chosen in ranked] == pytest.approx(priors)


def test_equal_scores_keep_the_first_stages_order_and_none_is_left_out_at_zero() -> None:
    given = candidates(1.0, 2.0, 2.0)
    ranked = rank(given, torch.tensor([2.0, 0.0, 0.0]), late_scale=SCALE, top_k=0)
    assert [chosen.entry for chosen in ranked] == [chosen.entry for chosen in given]


def selected(late_scale: float, question: Question) -> list[Selected]:
    aggregation = AggregationConfig(kind="refine", d_modulation=8, d_question=8, d_late=4)
    config = replace(
        CONFIG,
        amortization=replace(CONFIG.amortization, kind="latent"),
        prefix=replace(CONFIG.prefix, kind="latent"),
        aggregation=aggregation,
        selection=replace(CONFIG.selection, late_scale=late_scale),
    )
    model = FakeModel(config=config)
    bank = MemoryBank(config.selection)
    documents = [Document(id=str(place), text=text) for place, text in enumerate(TEXTS)]
    view = learn_documents(model, bank, documents, batch_size=4)
    (chosen,) = Selecting(model, bank).select([question], [view], now=0.0)
    return chosen


def test_candidates_are_ranked_again_where_the_bundle_says_so() -> None:
    question = Question(text="Bergen is", mode="memory", top_k=1)
    (near,), (far,) = selected(0.0, question), selected(100.0, question)
    assert near.entry.document_id == "1"
    assert far.entry.document_id != "1"
    assert far.late > 0.0


def test_text_alone_is_chosen_by_bm25_alone() -> None:
    question = Question(text="Bergen is", mode="text")
    assert [c.entry.document_id for c in selected(100.0, question)] == [
        c.entry.document_id for c in selected(0.0, question)
    ]


def test_the_whole_bank_is_ranked_when_all_of_it_is_asked_for() -> None:
    question = Question(text="Bergen is", mode="memory", top_k=0)
    assert {chosen.entry.document_id for chosen in selected(100.0, question)} == {"0", "1", "2"}
