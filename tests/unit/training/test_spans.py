"""Where an answer begins and ends: the loss written out, and who learns from it."""

from __future__ import annotations

import pytest
import torch

from mac_core.networks.build import model_states
from mac_core.training.spans import SpanHeads, TrainedModel, span_loss
from mac_core.training.step import StepConfig, training_loss
from tests.builders import tiny_bert_model, tiny_latent_model
from tests.unit.training.samples import sample, seeded

TOKENS = 6


def asked(*places: tuple[int, int], tokens: int = TOKENS) -> torch.Tensor:
    """Copy mask `(1, 4, tokens)` of an answer of `size` tokens that stands at each start."""
    mask = torch.zeros(1, 4, tokens, dtype=torch.bool)
    for start, size in places:
        for step in range(size):
            mask[0, step, start + step] = True
    return mask


def test_span_loss_is_the_surprise_at_both_ends() -> None:
    scores = torch.randn(1, TOKENS, 2, generator=torch.Generator().manual_seed(0))
    is_token = torch.tensor([[False, True, True, True, True, True]])
    loss, count = span_loss(
        scores,
        copy_mask=asked((1, 2), (4, 2)),
        is_token=is_token,
        answer_lengths=torch.tensor([2]),
    )
    share = torch.softmax(scores[0, 1:], dim=0)  # (tokens - 1, 2)
    expected = -(share[[0, 3], 0].sum().log() + share[[1, 4], 1].sum().log())
    assert int(count) == 1
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("size", [0, 2])
def test_a_question_whose_answer_does_not_stand_there_does_not_count(size: int) -> None:
    copy_mask = asked((1, size)) if size else asked()
    is_token = torch.zeros(1, TOKENS, dtype=torch.bool)
    is_token[0, 3:] = True  # the answer's tokens were not kept
    scores = torch.zeros(1, TOKENS, 2, requires_grad=True)
    loss, count = span_loss(
        scores, copy_mask=copy_mask, is_token=is_token, answer_lengths=torch.tensor([size])
    )
    loss.backward()
    assert (float(loss.detach()), int(count)) == (0.0, 0)
    assert scores.grad is not None
    assert not scores.grad.any()


def test_untrained_heads_find_every_token_as_likely() -> None:
    # A tie draws no random number: a run with other heads would draw the same batches.
    heads = SpanHeads(d_modulation=4, d_model=4)
    assert not any(parameter.any() for parameter in heads.parameters())


def test_no_bundle_holds_the_heads() -> None:
    trained = TrainedModel(tiny_latent_model())
    stored = [name for state in model_states(trained.model) for name in state]
    assert {name for name, _ in trained.named_parameters() if "spans" in name}
    assert not [name for name in stored if "spans" in name]


def test_a_step_that_only_asks_where_answers_stand_writes_none() -> None:
    model = tiny_latent_model()
    spans = SpanHeads.of(model)
    config = StepConfig(mode="memory", answers=False)
    losses = training_loss(model, sample(), config, generator=seeded(), spans=spans)
    assert set(losses) == {"selection", "late", "evidence", "span", "total"}
    losses["total"].backward()  # the second look at once: the heads began at zero
    assert spans.slots.weight.grad is not None
    assert spans.slots.weight.grad.any()
    assert all(p.grad is None for name, p in model.base_lm.named_parameters() if "layer" in name)


@pytest.mark.parametrize("build", [tiny_latent_model, tiny_bert_model])
def test_texts_are_asked_the_same_with_and_without_an_answer_behind_them(build: object) -> None:
    # The prompt sees no answer, so what is read of its text is the same.
    model = build()  # type: ignore[operator]
    spans = SpanHeads.of(model)
    torch.nn.init.normal_(spans.text.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone, answered = (
            training_loss(
                model,
                sample(),
                StepConfig(mode="text", answers=answers),
                generator=seeded(),
                spans=spans,
            )
            for answers in (False, True)
        )
    assert set(alone) == {"text_span", "total"}
    torch.testing.assert_close(alone["text_span"], answered["text_span"])


def test_a_distractors_text_is_not_asked() -> None:
    model = tiny_latent_model()
    config = StepConfig(mode="hybrid", num_documents=3, wrong_text_fraction=1.0)
    losses = training_loss(model, sample(), config, generator=seeded(), spans=SpanHeads.of(model))
    assert float(losses["text_span"].detach()) == 0.0
    assert float(losses["span"].detach()) > 0.0
