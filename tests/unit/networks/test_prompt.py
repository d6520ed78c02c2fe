"""Prompts: where text, question and answer lie, at which positions, and what is read both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mac_core.networks.prompt import Ids, Prompt, PromptAttention, join, make_prompt

TEXT_POSITION = 20
QUESTIONS = [[31, 32, 33], [41]]
TEXTS = [[11], [21, 22, 23, 24]]
ANSWERS = [[51, 52], [61]]


def padded(rows: list[list[int]], *, tokens: int | None = None, pad_id: int = 99) -> Ids:
    """Right-padded with an id that must not be seen anywhere."""
    width = max(map(len, rows)) if tokens is None else tokens
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids.reshape(len(rows), width), mask.reshape(len(rows), width)


def prompt(attention: PromptAttention, texts: list[list[int]] | None = TEXTS) -> Prompt:
    return make_prompt(
        padded(QUESTIONS, tokens=5),
        None if texts is None else padded(texts, tokens=6),
        attention=attention,
        text_position=TEXT_POSITION,
    )


def real(values: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[own].tolist() for row, own in zip(values, mask, strict=True)]


# ---- join


def test_right_rows_lie_directly_behind_left_ones() -> None:
    ids, mask = join(padded(TEXTS, tokens=6), padded(QUESTIONS, tokens=5))
    assert ids.tolist() == [[11, 31, 32, 33, 0], [21, 22, 23, 24, 41]]
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]


@pytest.mark.parametrize("left", [[[], [21]], [[11], []], [[], []]])
def test_row_that_is_empty_on_the_left_is_its_right_row(left: list[list[int]]) -> None:
    ids, mask = join(padded(left, tokens=2), padded(QUESTIONS))
    assert real(ids, mask) == [one + other for one, other in zip(left, QUESTIONS, strict=True)]


def test_row_that_is_empty_on_the_right_is_its_left_row() -> None:
    ids, mask = join(padded(TEXTS), padded([[], [41]], tokens=3))
    assert real(ids, mask) == [TEXTS[0], [*TEXTS[1], 41]]


def test_joined_rows_are_as_long_as_the_longest_of_them() -> None:
    ids, mask = join(padded([[1], [2, 3]], tokens=9), padded([[4], [5]], tokens=9))
    assert ids.shape == mask.shape == (2, 3)


# ---- what stands where


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_text_stands_before_the_question(attention: PromptAttention) -> None:
    made = prompt(attention)
    rows = [text + question for text, question in zip(TEXTS, QUESTIONS, strict=True)]
    assert real(made.ids, made.mask) == rows
    assert made.lengths.tolist() == [4, 5]
    assert made.is_text.tolist() == [[True] + [False] * 4, [True] * 4 + [False]]
    assert made.has_text


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_prompt_without_text_is_the_question_from_position_zero(
    attention: PromptAttention,
) -> None:
    made = prompt(attention, texts=None)
    assert real(made.ids, made.mask) == QUESTIONS
    assert real(made.positions, made.mask) == [[0, 1, 2], [0]]
    assert made.next_position.tolist() == [3, 1]
    assert not made.has_text


def test_causal_positions_run_through_text_and_question() -> None:
    made = prompt("causal")
    assert real(made.positions, made.mask) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert made.next_position.tolist() == [4, 5]


def test_positions_of_a_prompt_read_both_ways_keep_the_text_out_of_the_way() -> None:
    made = prompt("bidirectional")
    assert real(made.positions, made.mask) == [[20, 0, 1, 2], [20, 21, 22, 23, 0]]
    assert made.next_position.tolist() == [3, 1]  # as if there were no text


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_row_whose_text_is_empty_is_its_question(attention: PromptAttention) -> None:
    made = prompt(attention, texts=[[], TEXTS[1]])
    assert real(made.ids, made.mask)[0] == QUESTIONS[0]
    assert real(made.positions, made.mask)[0] == [0, 1, 2]
    assert not made.is_text[0].any()


# ---- the answer behind it


def test_answer_lies_behind_each_rows_own_prompt() -> None:
    ids, mask, _, _ = prompt("causal").followed_by(*padded(ANSWERS))
    assert real(ids, mask) == [[11, 31, 32, 33, 51, 52], [21, 22, 23, 24, 41, 61]]


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("causal", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]),
        ("bidirectional", [[20, 0, 1, 2, 3, 4], [20, 21, 22, 23, 0, 1]]),
    ],
)
def test_answers_positions_go_on_after_the_question(
    attention: PromptAttention, expected: list[list[int]]
) -> None:
    _, mask, positions, _ = prompt(attention).followed_by(*padded(ANSWERS))
    assert real(positions, mask) == expected


def test_prompt_alone_is_open_where_it_is_read_both_ways() -> None:
    _, mask, _, is_open = prompt("bidirectional").followed_by(*padded(ANSWERS))
    assert real(is_open, mask) == [[True] * 4 + [False] * 2, [True] * 5 + [False]]


def test_nothing_is_open_in_a_causal_prompt() -> None:
    _, _, _, is_open = prompt("causal").followed_by(*padded(ANSWERS))
    assert not is_open.any()
