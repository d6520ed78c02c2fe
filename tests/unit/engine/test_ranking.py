"""The second stage of selection: late interaction decides among the first stage's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mac_core.config import AggregationConfig, ModelConfig
from mac_core.engine.ranking import rank
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.learned import learn_documents
from mac_core.memory.bank import MemoryBank, Selected
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.values import QuestionEncoding
from mac_core.types import Document, Modulation, Question
from tests.unit.engine.fakes import CONFIG, FakeModel

SCALE = 0.5
TEXTS = ("Bergen is a city by the sea.", "Bergen is", "Bergen is a city of rain and of fish.")


def candidates(*scores: float) -> list[Selected]:
    return [
        Selected(entry=object(), score=score, log_prior=0.0, cosine=0.1)  # type: ignore[arg-type]
        for score in scores
    ]


def test_late_interaction_is_added_and_the_prior_is_of_the_sum() -> None:
    first, second, third = candidates(3.0, 2.0, 1.0)
    ranked = rank([first, second, third], torch.tensor([0.0, 1.0, 6.0]), late_scale=SCALE)
    assert [chosen.entry for chosen in ranked] == [third.entry, first.entry, second.entry]
    assert [chosen.score for chosen in ranked] == [4.0, 3.0, 2.5]
    assert [chosen.late for chosen in ranked] == [6.0, 0.0, 1.0]
    priors = torch.tensor([4.0, 3.0, 2.5]).log_softmax(0).tolist()
    assert [chosen.log_prior for chosen in ranked] == pytest.approx(priors)


def test_equal_scores_keep_the_first_stages_order() -> None:
    given = candidates(1.0, 2.0, 2.0)
    ranked = rank(given, torch.tensor([2.0, 0.0, 0.0]), late_scale=SCALE)
    assert [chosen.entry for chosen in ranked] == [chosen.entry for chosen in given]


def ranking_config(late_scale: float, **selection: Any) -> ModelConfig:
    aggregation = AggregationConfig(kind="refine", d_modulation=8, d_question=8, d_late=4)
    return replace(
        CONFIG,
        amortization=replace(CONFIG.amortization, kind="latent"),
        prefix=replace(CONFIG.prefix, kind="latent"),
        aggregation=aggregation,
        selection=replace(CONFIG.selection, late_scale=late_scale, **selection),
    )


def selected_by(model: FakeModel, *questions: Question) -> list[list[Selected]]:
    bank = MemoryBank(model.config.selection)
    documents = [Document(id=str(place), text=text) for place, text in enumerate(TEXTS)]
    view = learn_documents(model, bank, documents, batch_size=4)
    return Selecting(model, bank).select(questions, [view] * len(questions), now=0.0)


def selected(late_scale: float, question: Question, **selection: Any) -> list[Selected]:
    (chosen,) = selected_by(FakeModel(config=ranking_config(late_scale, **selection)), question)
    return chosen


class Attentive(FakeModel):
    """Matches a question by what it is, and writes down which keys it matched it with."""

    def __init__(self) -> None:
        super().__init__(config=ranking_config(100.0))
        self.made: list[AggregationKeys] = []
        self.matched: list[AggregationKeys] = []

    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys:
        self.made.append(super().aggregation_keys(modulation))
        return self.made[-1]

    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor:
        self.matched += keys
        return question.states.sum() * super().match(question, keys)


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


@pytest.mark.parametrize("top_k", [0, 3])
def test_as_many_as_are_asked_for_are_ranked_whatever_the_candidates(top_k: int) -> None:
    # Defect 1, in the second stage: documents of the bank that no question ever reaches.
    question = Question(text="Bergen is", mode="memory", top_k=top_k)
    ranked = selected(100.0, question, num_candidates=1)
    assert {chosen.entry.document_id for chosen in ranked} == {"0", "1", "2"}


def test_each_question_of_a_batch_is_matched_by_itself() -> None:
    # Defect 2, in the second stage.
    questions = [Question(text=text, mode="memory", top_k=0) for text in ("Bergen is", "fish")]
    together = selected_by(Attentive(), *questions)
    alone = [selected_by(Attentive(), question)[0] for question in questions]
    late = [[[chosen.late for chosen in ranked] for ranked in rows] for rows in (together, alone)]
    assert late[0] == late[1]
    assert late[0][0] != late[0][1]


def test_ranking_matches_keys_that_were_made_when_the_documents_were_learned() -> None:
    # Defect 6, in the second stage: a document's keys made anew for every question.
    model = Attentive()
    selected_by(model, *[Question(text=text, mode="memory", top_k=0) for text in ("Bergen", "a")])
    assert len(model.made) == len(TEXTS)
    assert {id(key) for key in model.matched} == {id(key) for key in model.made}
