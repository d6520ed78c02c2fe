"""Options that are read from text."""

from dataclasses import fields
from pathlib import Path

import pytest

from mac_core.training.cli import mini
from mac_core.training.options import MODES, MiniOptions, parse_mode_shares
from mac_core.types import Question


def test_shares_of_modes_are_in_proportion() -> None:
    shares = parse_mode_shares("memory:3,hybrid:0.75,text:0.25")
    assert shares == (("memory", 0.75), ("hybrid", 0.1875), ("text", 0.0625))


def test_command_proposes_the_shares_that_the_options_have() -> None:
    proposed = mini.__defaults__ or ()
    text = next(value for value in proposed if str(value).startswith("memory:"))
    assert dict(parse_mode_shares(text)) == pytest.approx(dict(MODES))


def test_an_answer_is_cut_in_training_where_it_is_when_given() -> None:
    # At 16 tokens one answer in nine of FairytaleQA was taught to break off.
    cut = {field.name: field.default for field in fields(MiniOptions)}["max_answer_tokens"]
    assert cut == Question(text="?").max_new_tokens


@pytest.mark.parametrize(
    "text",
    ["", "memory", "memory:", "memory:x", "memory:0", "memory:-1", "memory:nan", "memory:inf"]
    + ["oracle:1", "memory:1,", "memory:1,memory:2"],
)
def test_what_is_no_list_of_modes_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text.split(",")[-1])):
        parse_mode_shares(text)


def options(*, depth: int, selection_layers: int) -> MiniOptions:
    return MiniOptions(
        data_directory=Path(),
        run_directory=Path(),
        minutes=1.0,
        depth=depth,
        selection_layers=selection_layers,
    )


@pytest.mark.parametrize(("depth", "selection_layers"), [(5, 2), (4, 3)])
def test_more_layers_than_minilm_has_are_refused(depth: int, selection_layers: int) -> None:
    with pytest.raises(ValueError, match=f"depth={depth} and selection_layers={selection_layers} "):
        options(depth=depth, selection_layers=selection_layers)


def test_all_layers_of_minilm_may_be_used() -> None:
    assert options(depth=4, selection_layers=2).depth == 4
