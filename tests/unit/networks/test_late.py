"""Late interaction, against the same written out for one question and one document."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mac_core.networks.refine as refine
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.late import BEGIN_WEIGHT, LateInteraction, pack_unit, unpack_unit
from mac_core.networks.values import QuestionEncoding
from tests.builders import tiny_latent_model, tiny_paper_model
from tests.unit.networks.bank_samples import WIDTH, sample_bank, sample_question
from tests.unit.networks.model_samples import DAM, ELBE, QUESTIONS, SHORT

D_LATE = 6
DOCUMENTS = 4
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums in another order


def interaction() -> LateInteraction:
    """A network whose tokens, unlike at the start of training, differ in weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = LateInteraction(d_modulation=WIDTH, d_question=WIDTH, d_late=D_LATE)
        torch.nn.init.normal_(network.weight.weight)
    return network.eval()


def written_out(network: LateInteraction, states: Tensor, slots: Tensor) -> Tensor:
    """One question's tokens and one document's slots, no padding among them."""
    total = torch.zeros(())
    for state in states:
        query = F.normalize(network.query(state), dim=0)
        best = max(float(query @ F.normalize(network.key(slot), dim=0)) for slot in slots)
        total = total + F.softplus(network.weight(state))[0] * best
    return total


def padded(question: QuestionEncoding, *, lengths: Tensor) -> QuestionEncoding:
    mask = torch.arange(question.states.shape[1]) < lengths[:, None]
    return replace(question, mask=mask)


@torch.no_grad()
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("document", range(DOCUMENTS))
def test_score_is_the_weighed_sum_of_best_matches_of_real_tokens(row: int, document: int) -> None:
    network, bank = interaction(), sample_bank(2, DOCUMENTS)
    question = padded(sample_question(2), lengths=torch.tensor([2, 3]))
    mask = torch.arange(bank.mask.shape[-1]) < torch.tensor([1, 2, 3, 2])[:, None]
    scores = network(question, network.keys(bank.slots[0]), mask)
    expected = written_out(
        network, question.states[row][question.mask[row]], bank.slots[0, document][mask[document]]
    )
    torch.testing.assert_close(scores[row, document], expected, **TOLERANCE)


@torch.no_grad()
def test_document_without_slots_scores_nothing() -> None:
    network, bank = interaction(), sample_bank(1, 1)
    nothing = torch.zeros_like(bank.mask[0])
    assert network(sample_question(1), network.keys(bank.slots[0]), nothing).tolist() == [[0.0]]


@torch.no_grad()
def test_every_token_counts_alike_before_training() -> None:
    network = LateInteraction(d_modulation=WIDTH, d_question=WIDTH, d_late=D_LATE)
    weights = F.softplus(network.weight(sample_question(1).states))
    torch.testing.assert_close(weights, torch.full_like(weights, BEGIN_WEIGHT))


def test_packing_keeps_unit_vectors_to_half_a_level() -> None:
    vectors = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    packed = pack_unit(vectors)
    assert packed.dtype == torch.int8
    assert float((unpack_unit(packed) - vectors).abs().max()) <= 0.5 / 127 + 1e-6


@torch.no_grad()
def test_model_matches_a_question_with_documents_as_training_does() -> None:
    model = tiny_latent_model()
    modulations = [model.amortize([text])[0] for text in (ELBE, SHORT, DAM)]
    keys = [model.aggregation_keys(modulation) for modulation in modulations]
    encoded = model.encode_questions(list(QUESTIONS))
    late = model.aggregation.late
    for row in range(len(QUESTIONS)):
        found = model.match(encoded.row(row), keys)
        expected = [
            late(
                encoded.row(row),
                unpack_unit(pack_unit(late.keys(modulation.slots[None]))),  # as a bank holds them
                torch.ones(1, len(modulation.slots), dtype=torch.bool),
            )[0, 0]
            for modulation in modulations
        ]
        torch.testing.assert_close(found, torch.stack(expected), **TOLERANCE)


@torch.no_grad()
def test_match_of_a_document_does_not_depend_on_those_beside_it() -> None:
    model = tiny_latent_model()
    keys = [model.aggregation_keys(model.amortize([text])[0]) for text in (SHORT, 5 * DAM)]
    asked = model.encode_questions(list(QUESTIONS)).row(0)
    alone = torch.cat([model.match(asked, [key]) for key in keys])
    torch.testing.assert_close(model.match(asked, keys), alone, **TOLERANCE)


@torch.no_grad()
def test_a_whole_bank_is_matched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_latent_model()
    texts = [f"{DAM} {number} {ELBE * (number % 3)}" for number in range(7)]
    keys = [model.aggregation_keys(model.amortize([text[:200]])[0]) for text in texts]
    asked = model.encode_questions(list(QUESTIONS)).row(1)
    whole = model.match(asked, keys)
    monkeypatch.setattr(refine, "MATCHED_AT_ONCE", 3)
    torch.testing.assert_close(model.match(asked, keys), whole, **TOLERANCE)


def test_an_aggregation_without_late_interaction_says_so() -> None:
    model = tiny_paper_model("gpt2")
    asked = model.encode_questions([QUESTIONS[0]])
    with pytest.raises(ValueError, match="AttendAggregation has no late interaction"):
        model.match(asked, [AggregationKeys(tensors=())])
