"""What is minimised, against the same written out; gradients stay finite where nothing is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mac_core.networks.pointer import PointerMemory
from mac_core.training.losses import (
    END_WEIGHT,
    START_WEIGHT,
    AnswerStates,
    answer_loss,
    distillation_loss,
    evidence_loss,
    log_mixture,
    null_loss,
    selection_loss,
    target_weights,
)
from tests.builders import WIDTH, tiny_bert_model

ROWS, STEPS, TOKENS, VOCABULARY = 2, 3, 5, 100
MASK = torch.tensor([[True, True, True], [True, False, False]])
# Of the real targets: a start, one between, an end; an answer's start that is its end too.
WEIGHTS = torch.tensor([START_WEIGHT, 1.0, END_WEIGHT, START_WEIGHT])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(*, is_empty: bool = False) -> dict[str, object]:
    """Two rows of three steps; the second row has one target and, if `is_empty`, no memory."""
    log_prior = torch.zeros(ROWS, TOKENS)
    log_prior[1] = -torch.inf if is_empty else -1.0
    copy_mask = torch.zeros(ROWS, STEPS, 2 * TOKENS, dtype=torch.bool)
    copy_mask[0, 0, 1] = copy_mask[0, 0, 4] = copy_mask[0, 1, 2] = True
    copy_mask[0, 2, TOKENS + 2] = True  # after the last token, the answer ends
    return {
        "hidden": normal(ROWS, STEPS, WIDTH, seed=1),
        "last": normal(ROWS, STEPS, WIDTH, seed=2),
        "targets": torch.tensor([[5, 6, 3], [3, 0, 0]]),
        "target_mask": MASK,
        "copy_mask": copy_mask,
        "memory": PointerMemory(
            keys=normal(ROWS, TOKENS, 2 * 16, seed=3),
            token_ids=torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS),
            log_prior=log_prior,
            document=torch.zeros(ROWS, TOKENS, dtype=torch.int64),
        ),
    }


@torch.no_grad()
@pytest.mark.parametrize("is_empty", [False, True])
def test_answer_loss_is_the_weighed_mean_of_the_mixtures_surprise(is_empty: bool) -> None:
    model, given = tiny_bert_model(), inputs(is_empty=is_empty)
    hidden, last, memory = given["hidden"], given["last"], given["memory"]
    surprises = []
    for row, step in MASK.nonzero().tolist():
        one = memory.rows(torch.tensor([row]))
        state, before = hidden[[row], step][:, None], last[[row], step][:, None]
        scores = model.base_lm.logits(state)[:, 0]
        log_vocabulary, log_copying = model.pointer.log_gate(state, one)
        attention = model.pointer.log_attention(state, before, one)[0, 0].exp()
        probability = log_vocabulary[0, 0].exp() * scores[0].softmax(0)[given["targets"][row, step]]
        probability += log_copying[0, 0].exp() * attention[given["copy_mask"][row, step]].sum()
        surprises.append(-math.log(float(probability)))
    loss = answer_loss(model.base_lm, model.pointer, **given)
    expected = (WEIGHTS * torch.tensor(surprises)).sum() / WEIGHTS.sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_without_a_pointer_it_is_the_vocabularys_cross_entropy() -> None:
    model, given = tiny_bert_model(), inputs()
    loss = answer_loss(model.base_lm, None, **given)
    scores = model.base_lm.logits(given["hidden"])[MASK]
    surprises = -scores.log_softmax(1)[range(4), given["targets"][MASK]]
    torch.testing.assert_close(loss, (WEIGHTS * surprises).sum() / WEIGHTS.sum())


@pytest.mark.parametrize("is_empty", [False, True])
def test_gradients_are_finite_whatever_there_is_to_copy(is_empty: bool) -> None:
    model, given = tiny_bert_model(), inputs(is_empty=is_empty)
    given["hidden"].requires_grad_()
    answer_loss(model.base_lm, model.pointer, **given).backward()
    moved = [*model.pointer.query.parameters(), *model.pointer.gate.parameters(), given["hidden"]]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in moved)


def test_selection_loss_contrasts_with_every_document_of_the_batch() -> None:
    queries, keys = normal(3, 4, seed=5), normal(6, 4, seed=6)
    right = torch.tensor([2, 0, 5])
    scores = 20.0 * queries @ keys.T
    expected = -sum(float(scores[i].log_softmax(0)[d]) for i, d in enumerate(right.tolist())) / 3
    loss = selection_loss(queries, keys, right, scale=20.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# ---- what a target counts


def test_starts_and_ends_of_answers_count_more() -> None:
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    assert target_weights(mask).tolist() == [
        [START_WEIGHT, 1.0, 1.0, END_WEIGHT],
        [START_WEIGHT, END_WEIGHT, 0.0, 0.0],
        [START_WEIGHT, 0.0, 0.0, 0.0],  # the end of an answer without tokens is its start
    ]


# ---- evidence


def test_evidence_loss_is_the_surprise_at_the_answers_share() -> None:
    scores = torch.tensor([[1.0, 2.0, -torch.inf, 0.5], [0.0, 0.0, 3.0, 1.0]])
    is_answer = torch.tensor([[True, False, False, True], [False, False, True, False]])
    first = (math.exp(1.0) + math.exp(0.5)) / (math.exp(1.0) + math.exp(2.0) + math.exp(0.5))
    second = math.exp(3.0) / (2.0 + math.exp(3.0) + math.exp(1.0))
    expected = -(math.log(first) + math.log(second)) / 2
    assert float(evidence_loss(scores, is_answer)) == pytest.approx(expected, rel=1e-5)


def test_questions_without_an_answer_among_the_slots_do_not_count() -> None:
    scores = torch.tensor([[1.0, 2.0], [5.0, -5.0]])
    is_answer = torch.tensor([[True, False], [False, False]])
    alone = evidence_loss(scores[:1], is_answer[:1])
    torch.testing.assert_close(evidence_loss(scores, is_answer), alone)


def test_evidence_loss_is_zero_where_no_question_has_an_answer() -> None:
    assert float(evidence_loss(normal(2, 3), torch.zeros(2, 3, dtype=torch.bool))) == 0.0


def test_evidence_knows_only_differences() -> None:
    scores, is_answer = normal(2, 4), torch.tensor([[True, False, False, True]] * 2)
    shifted = evidence_loss(scores + 7.0, is_answer)
    torch.testing.assert_close(shifted, evidence_loss(scores, is_answer))


def test_gradient_of_the_evidence_raises_the_answers_slots_alone() -> None:
    scores = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 0.1, 0.2]], requires_grad=True)
    is_answer = torch.tensor([[True, False, False], [False, False, False]])
    evidence_loss(scores, is_answer).backward()
    assert scores.grad is not None
    assert torch.sign(scores.grad).tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


# ---- what another reading says


def states(*, seed: int, is_empty: bool = False) -> AnswerStates:
    given = inputs(is_empty=is_empty)
    given["hidden"] = normal(ROWS, STEPS, WIDTH, seed=seed)
    return AnswerStates(**given)


@torch.no_grad()
@pytest.mark.parametrize("is_empty", [False, True])
def test_compared_distributions_are_those_that_generation_draws_from(is_empty: bool) -> None:
    model, read, end_id = tiny_bert_model(), states(seed=8, is_empty=is_empty), 3
    places = MASK.nonzero()
    found = log_mixture(model.base_lm, model.pointer, read, places, end_id=end_id).exp()
    for target, (row, step) in enumerate(places.tolist()):
        state, last = read.hidden[[row], step][:, None], read.last[[row], step][:, None]
        memory = read.memory.rows(torch.tensor([row]))
        scores = model.base_lm.logits(state)[:, 0]
        mixed = model.pointer.mix(scores, state, last, memory, end_id=end_id)
        torch.testing.assert_close(found[target], mixed.probabilities[0], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_distillation_is_the_mean_divergence_over_the_rows_that_count() -> None:
    model, teacher, student = tiny_bert_model(), states(seed=8), states(seed=9)
    for rows in ([True, False], [True, True]):
        places = (MASK & torch.tensor(rows)[:, None]).nonzero()
        wanted, found = (
            log_mixture(model.base_lm, model.pointer, read, places, end_id=3).double()
            for read in (teacher, student)
        )
        expected = (wanted.exp() * (wanted - found)).sum(1).mean()
        loss = distillation_loss(
            model.base_lm,
            model.pointer,
            teacher=teacher,
            student=student,
            rows=torch.tensor(rows),
            end_id=3,
        )
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
        assert float(loss) > 0.0


def test_only_the_student_learns_and_nothing_from_itself() -> None:
    model = tiny_bert_model()
    teacher, student = states(seed=8), states(seed=9)
    teacher.hidden.requires_grad_()
    student.hidden.requires_grad_()

    def loss(taught: AnswerStates, *, rows: list[bool]) -> Tensor:
        return distillation_loss(
            model.base_lm,
            model.pointer,
            teacher=teacher,
            student=taught,
            rows=torch.tensor(rows),
            end_id=3,
        )

    loss(student, rows=[True, False]).backward()
    assert teacher.hidden.grad is None
    assert student.hidden.grad is not None
    assert student.hidden.grad[0].abs().sum() > 0
    assert student.hidden.grad[1].abs().sum() == 0  # its text was another document's
    assert float(loss(teacher, rows=[True, True]).detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(student, rows=[False, False]).detach()) == 0.0


# ---- documents that do not answer


def test_null_loss_is_the_surprise_at_wrong_documents_saying_no() -> None:
    log_null = torch.tensor([[0.1, 0.5, 0.25], [0.9, 1.0, 0.5]]).log()
    expected = -sum(math.log(p) for p in (0.5, 0.25, 1.0, 0.5)) / 4
    assert float(null_loss(log_null)) == pytest.approx(expected)
    assert float(null_loss(log_null[:, :1])) == 0.0
