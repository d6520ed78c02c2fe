"""Held-out losses: the same for the same model, over all modes, and nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer

from mac_core.training.encoding import encode_paragraphs, mine_neighbours
from mac_core.training.options import MiniOptions
from mac_core.training.validation import held_out_losses
from tests.builders import tiny_latent_model, tiny_tokenizer_json
from tests.unit.training.samples import encoded, paragraphs

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


def test_fewer_questions_than_half_a_batch_are_asked_as_one_batch() -> None:
    model, corpus = tiny_latent_model(), encoded()
    neighbours = mine_neighbours(corpus, num_neighbours=2)
    whole = replace(OPTIONS, validation_questions=4)
    expected = held_out_losses(model, corpus, neighbours, whole)
    few = replace(OPTIONS, validation_questions=1)
    assert held_out_losses(model, corpus, neighbours, few) == expected


@pytest.mark.parametrize("kept", [1, 3])
def test_fewer_paragraphs_than_a_step_takes_are_all_asked(kept: int) -> None:
    corpus = encode_paragraphs(paragraphs()[:kept], FastTokenizer.from_str(tiny_tokenizer_json()))
    neighbours = mine_neighbours(corpus)
    model = tiny_latent_model()
    expected = held_out_losses(model, corpus, neighbours, replace(OPTIONS, num_paragraphs=kept))
    more = replace(OPTIONS, num_paragraphs=16)
    assert held_out_losses(model, corpus, neighbours, more) == expected
    assert set(expected) > {"answer_memory", "answer_text"}


def test_nothing_is_asked_where_no_paragraph_has_a_question() -> None:
    silent = [replace(paragraph, questions=()) for paragraph in paragraphs()]
    corpus = encode_paragraphs(silent, FastTokenizer.from_str(tiny_tokenizer_json()))
    assert held_out_losses(tiny_latent_model(), corpus, mine_neighbours(corpus), OPTIONS) == {}
