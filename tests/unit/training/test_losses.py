"""What is minimised, against the same written out; gradients stay finite where nothing is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mac_core.networks.pointer import PointerMemory
from mac_core.training.losses import answer_loss, selection_loss
from tests.builders import WIDTH, tiny_bert_model

ROWS, STEPS, TOKENS, VOCABULARY = 2, 3, 5, 100
MASK = torch.tensor([[True, True, True], [True, False, False]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(*, is_empty: bool = False) -> dict[str, object]:
    """Two rows of three steps; the second row has one target and, if `is_empty`, no memory."""
    log_prior = torch.zeros(ROWS, TOKENS)
    log_prior[1] = -torch.inf if is_empty else -1.0
    copy_mask = torch.zeros(ROWS, STEPS, TOKENS, dtype=torch.bool)
    copy_mask[0, 0, 1] = copy_mask[0, 0, 4] = copy_mask[0, 1, 2] = True
    return {
        "hidden": normal(ROWS, STEPS, WIDTH, seed=1),
        "last": normal(ROWS, STEPS, WIDTH, seed=2),
        "targets": torch.tensor([[5, 6, 3], [3, 0, 0]]),
        "target_mask": MASK,
        "copy_mask": copy_mask,
        "memory": PointerMemory(
            keys=normal(ROWS, TOKENS, 16, seed=3),
            token_ids=torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS),
            log_prior=log_prior,
        ),
    }


@torch.no_grad()
@pytest.mark.parametrize("is_empty", [False, True])
def test_answer_loss_is_the_mean_over_real_targets_of_the_mixtures_surprise(is_empty: bool) -> None:
    model, given = tiny_bert_model(), inputs(is_empty=is_empty)
    hidden, last, memory = given["hidden"], given["last"], given["memory"]
    surprises = []
    for row, step in MASK.nonzero().tolist():
        one = PointerMemory(
            keys=memory.keys[[row]],
            token_ids=memory.token_ids[[row]],
            log_prior=memory.log_prior[[row]],
        )
        state, before = hidden[[row], step][:, None], last[[row], step][:, None]
        scores = model.base_lm.logits(state)[:, 0]
        log_vocabulary, log_copying = model.pointer.log_gate(state, one)
        attention = model.pointer.log_attention(state, before, one)[0, 0].exp()
        probability = log_vocabulary[0, 0].exp() * scores[0].softmax(0)[given["targets"][row, step]]
        probability += log_copying[0, 0].exp() * attention[given["copy_mask"][row, step]].sum()
        surprises.append(-math.log(float(probability)))
    loss = answer_loss(model.base_lm, model.pointer, **given)
    assert float(loss) == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)


@torch.no_grad()
def test_without_a_pointer_it_is_the_vocabularys_cross_entropy() -> None:
    model, given = tiny_bert_model(), inputs()
    loss = answer_loss(model.base_lm, None, **given)
    scores = model.base_lm.logits(given["hidden"])[MASK]
    expected = torch.nn.functional.cross_entropy(scores, given["targets"][MASK])
    torch.testing.assert_close(loss, expected)


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
