"""Held-out losses: the same for the same model, over all modes, and nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mac_core.training.encoding import mine_neighbours
from mac_core.training.options import MiniOptions
from mac_core.training.validation import held_out_losses
from tests.builders import tiny_latent_model
from tests.unit.training.samples import encoded

OPTIONS = MiniOptions(
    data_directory=Path(),
    run_directory=Path(),
    minutes=1.0,
    num_paragraphs=2,
    questions_per_paragraph=2,
    validation_questions=24,
)


def test_losses_of_every_mode_are_repeated_exactly() -> None:
    model, corpus = tiny_latent_model(), encoded()
    neighbours = mine_neighbours(corpus, num_neighbours=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    torch.manual_seed(1)
    first = held_out_losses(model, corpus, neighbours, OPTIONS)
    torch.manual_seed(2)
    assert held_out_losses(model, corpus, neighbours, OPTIONS) == first
    assert {f"answer_{mode}" for mode in ("memory", "hybrid", "text")} <= set(first)
    assert "null_memory" in first  # distractors stand beside the right document
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_whole_batches_are_asked_or_none() -> None:
    model, corpus = tiny_latent_model(), encoded()
    neighbours = mine_neighbours(corpus, num_neighbours=2)
    one = replace(OPTIONS, validation_questions=4)
    few = held_out_losses(model, corpus, neighbours, one)
    assert few["answer_text"] != pytest.approx(
        held_out_losses(model, corpus, neighbours, OPTIONS)["answer_text"], abs=1e-7
    )
    assert held_out_losses(model, corpus, neighbours, replace(one, validation_questions=0)) == {}
