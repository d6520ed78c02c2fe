"""The loop on a handful of paragraphs: it learns, keeps to its budget, and resumes exactly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mac_core.training.trainer as trainer
from mac_core.errors import CheckpointError
from mac_core.networks.model import MacModel
from mac_core.training.data import Batch
from mac_core.training.options import MiniOptions
from mac_core.training.past import PastDocuments
from mac_core.training.resume import save_training_state
from mac_core.training.spans import TrainedModel
from mac_core.training.step import StepConfig, training_loss
from mac_core.training.trainer import Trainer, draw_step, make_optimizer
from mac_core.types import Fingerprint
from tests.builders import tiny_bert_model, tiny_latent_model
from tests.unit.training.samples import encoded

STEPS = 12
MODELS: dict[str, Callable[..., MacModel]] = {
    "layerwise": tiny_bert_model,
    "latent": tiny_latent_model,
}
STARTS = [Fingerprint(amortization_hash=name, base_lm_hash="same") for name in ("one", "two")]
NEIGHBOURS = np.array([[1, 2], [0, 3], [3, 0], [1, 2]], dtype=np.int32)


def ticking() -> Callable[[], float]:
    """A clock on which every step takes one second."""
    return itertools.count().__next__


def trainer_in(
    directory: Path,
    *,
    model: MacModel | None = None,
    steps: int = STEPS,
    start: Fingerprint | None = None,
    **changes: Any,
) -> Trainer:
    options: dict[str, Any] = {
        "num_paragraphs": 4,
        "questions_per_paragraph": 1,
        "learning_rate": 3e-3,
        "max_documents": 3,
        "checkpoint_minutes": 4.5 / 60,  # after every fifth step
        "log_every": 2,
    }
    directory.mkdir(exist_ok=True)
    return Trainer(
        model or tiny_bert_model(),
        encoded(),
        NEIGHBOURS,
        MiniOptions(
            data_directory=directory,
            run_directory=directory,
            minutes=steps / 60,
            **(options | changes),
        ),
        start=start,
        clock=ticking(),
    )


def weights(model: MacModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def drawn_banks(share: float) -> set[int]:
    options = MiniOptions(
        data_directory=Path(), run_directory=Path(), minutes=1.0, bank_after=0.4, max_documents=3
    )
    rng = np.random.default_rng(0)
    return {draw_step(options, share=share, rng=rng).num_documents for _ in range(50)}


def test_bank_grows_with_training() -> None:
    # Defect 11 of the reference: a network that never met distractors is asked amid thousands.
    assert drawn_banks(0.39) == {1}
    assert drawn_banks(0.41) == {1, 3}


def test_recipe_as_it_comes_ends_among_distractors_and_a_bank_of_thousands() -> None:
    # Defect 11: what is switched off by default is not there when nobody asks for it.
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0)
    rng = np.random.default_rng(0)
    assert {draw_step(options, share=0.99, rng=rng).num_documents for _ in range(50)} > {1}
    assert options.past_documents > 100 * options.num_paragraphs


def test_every_mode_is_trained_the_one_without_documents_too() -> None:
    # Defect 11: questions that nothing in the bank answers come up in service.
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0)
    rng = np.random.default_rng(0)
    drawn = {draw_step(options, share=0.5, rng=rng).mode for _ in range(2000)}
    assert drawn == {"memory", "hybrid", "text", "none"}


def test_modes_are_drawn_by_their_shares() -> None:
    modes = (("text", 0.75), ("memory", 0.25))
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0, modes=modes)
    rng = np.random.default_rng(0)
    drawn = [draw_step(options, share=0.5, rng=rng).mode for _ in range(2000)]
    assert set(drawn) == {"text", "memory"}
    assert drawn.count("text") / len(drawn) == pytest.approx(0.75, abs=0.04)


def test_where_answers_stand_is_asked_first_and_alone() -> None:
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0, span_share=0.5)
    rng = np.random.default_rng(0)
    first = [draw_step(options, share=0.49, rng=rng) for _ in range(300)]
    assert {step.mode for step in first} == {"memory", "text"}
    assert not any(step.answers for step in first)
    assert all(draw_step(options, share=0.5, rng=rng).answers for _ in range(50))


def test_embeddings_stay_where_no_answer_is_written(tmp_path: Path) -> None:
    model = tiny_latent_model()
    before = weights(model)
    list(trainer_in(tmp_path, model=model, span_share=1.0, selection_share=0.0).run())
    name = next(name for name in before if name.endswith("word_embeddings.weight"))
    moved = [key for key, value in weights(model).items() if not torch.equal(value, before[key])]
    assert name not in moved
    assert any(key.startswith("aggregation.stack") for key in moved)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Of each step of a run, how many past documents it began with and its paragraphs."""
    seen: list[tuple[int, list[int]]] = []

    def recorded(
        model: MacModel, batch: Batch, config: StepConfig, *, past: PastDocuments, **named: Any
    ) -> dict[str, torch.Tensor]:
        seen.append((len(past), batch.paragraph_index.tolist()))
        return training_loss(model, batch, config, past=past, **named)

    monkeypatch.setattr("mac_core.training.trainer.training_loss", recorded)
    model = tiny_latent_model()
    options = {"num_paragraphs": 2, "past_documents": 3, "selection_share": 0.0}
    list(trainer_in(tmp_path, model=model, **options).run())
    return seen


def test_bank_of_a_step_holds_what_earlier_steps_encoded(
    steps: list[tuple[int, list[int]]],
) -> None:
    # Defect 11, its second part: without the queue a bank is never larger than a batch.
    sizes = [size for size, _ in steps]
    assert sizes[0] == 0
    assert max(sizes) == 3
    assert sizes == sorted(sizes)


def test_batches_are_of_neighbours(steps: list[tuple[int, list[int]]]) -> None:
    # Defect 11, its third part: distractors that nobody would take for the right document.
    assert len(steps) == STEPS
    assert all(second in NEIGHBOURS[first] for _, (first, second) in steps)


def test_budget_is_spent_and_no_more(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    lines = list(trainer.run())
    assert trainer.progress.step == STEPS
    assert trainer.progress.questions == 4 * STEPS
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == lines


@pytest.mark.parametrize("architecture", MODELS)
def test_resumed_run_ends_as_the_uninterrupted_one(tmp_path: Path, architecture: str) -> None:
    # Past documents are not part of a checkpoint: a run with them fills its queue again.
    build, changes = MODELS[architecture], {"past_documents": 0}
    whole = trainer_in(tmp_path / "whole", model=build(), **changes)
    list(whole.run())
    stopped = trainer_in(tmp_path / "stopped", model=build(), **changes)
    for line in stopped.run():  # left after step 6, whose last checkpoint is step 5's
        if line["step"] == 6:
            break
    again = trainer_in(tmp_path / "stopped", model=build(seed=9), **changes)
    assert again.resume()
    assert again.progress.step == 5
    list(again.run())
    assert again.progress == whole.progress
    torch.testing.assert_close(weights(again.model), weights(whole.model), rtol=0.0, atol=0.0)


def test_last_stage_trains_the_layers_that_only_selection_uses(tmp_path: Path) -> None:
    model = tiny_latent_model()
    trainer = trainer_in(tmp_path, model=model, selection_share=0.5, log_every=1)
    lines = trainer.run()
    first = [next(lines) for _ in range(STEPS // 2)]
    before = weights(model)
    last = list(lines)
    assert all("selection_alone" not in line for line in first)
    assert [set(line) - {"step", "minutes", "questions"} for line in last] == [
        {"selection_alone"}
    ] * (STEPS // 2)
    changed = {name for name, value in weights(model).items() if not value.equal(before[name])}
    assert changed == {name for name in before if name.startswith("amortization.upper.")}


def test_selection_alone_learns_to_tell_documents_apart(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, model=tiny_latent_model(), steps=24, selection_share=1.0)
    losses = [line["selection_alone"] for line in trainer.run()]
    assert losses[-1] < 0.8 * losses[0]


def test_step_of_selection_alone_has_more_paragraphs_where_there_are_more(tmp_path: Path) -> None:
    trainer = trainer_in(
        tmp_path, model=tiny_latent_model(), steps=1, num_paragraphs=2, selection_share=1.0
    )
    list(trainer.run())
    assert trainer.progress.questions == len(encoded().paragraphs) == 4


def test_model_without_layers_for_selection_reads_to_the_end(tmp_path: Path) -> None:
    lines = list(trainer_in(tmp_path, selection_share=0.5, log_every=1).run())
    assert all("selection_alone" not in line for line in lines)


def test_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    list(trainer_in(tmp_path, steps=2).run())
    again = trainer_in(tmp_path, steps=2)
    assert again.resume()
    before = weights(again.model)
    assert list(again.run()) == []
    torch.testing.assert_close(weights(again.model), before, rtol=0.0, atol=0.0)


def test_new_run_has_nothing_to_resume(tmp_path: Path) -> None:
    assert not trainer_in(tmp_path).resume()


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    trainer_in(tmp_path).save()
    with pytest.raises(CheckpointError, match=r"pointer\.gate\.weight is unexpected"):
        trainer_in(tmp_path, model=tiny_bert_model(pointer=None)).resume()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "trained with seed=0, not 1$"),
        ({"dropout": 0.1}, "trained with dropout=0.0, not 0.1$"),
        ({"sources": ("squad",)}, r"trained with sources=\['squad', .*, not \['squad'\]$"),
        ({"depth": 3}, "trained with depth=2, not 3$"),
        ({"seed": 1, "depth": 3}, "depth=2, not 3; seed=0, not 1$"),
    ],
)
def test_checkpoint_of_other_options_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    trainer_in(tmp_path).save()
    with pytest.raises(CheckpointError, match=reason):
        trainer_in(tmp_path, **changes).resume()


@pytest.mark.parametrize("start", [STARTS[1], None])
def test_checkpoint_of_another_start_is_refused(tmp_path: Path, start: Fingerprint | None) -> None:
    trainer_in(tmp_path, start=STARTS[0]).save()
    assert trainer_in(tmp_path, start=STARTS[0]).resume()
    with pytest.raises(CheckpointError, match=r"trained with start_from=\{.*'one'.*, not "):
        trainer_in(tmp_path, start=start).resume()


def test_options_that_train_nothing_may_change(tmp_path: Path) -> None:
    trainer_in(tmp_path).save()
    changes = {
        "start_share": 0.5,
        "validation_questions": 0,
        "checkpoint_minutes": 1.0,
        "log_every": 1,
        "device": "cpu:0",
        "num_threads": 1,
    }
    assert trainer_in(tmp_path, steps=99, **changes).resume()


def test_checkpoint_that_does_not_say_what_trained_it_is_refused(tmp_path: Path) -> None:
    now = trainer_in(tmp_path)
    trained = TrainedModel(now.model)
    save_training_state(
        now.state_file,
        model=trained,
        optimizer=make_optimizer(trained, now.options),
        rng=np.random.default_rng(0),
        step=1,
        notes={"elapsed_s": 1.0, "questions": 4},
    )
    with pytest.raises(CheckpointError, match="does not say which options trained it"):
        now.resume()


@pytest.mark.parametrize("architecture", MODELS)
def test_a_few_steps_on_few_paragraphs_lower_the_loss(tmp_path: Path, architecture: str) -> None:
    model = MODELS[architecture]()
    lines = list(trainer_in(tmp_path, model=model, steps=24, log_every=8).run())
    assert lines[-1]["answer_memory"] < 0.8 * lines[0]["answer_memory"]


@pytest.mark.parametrize(
    ("architecture", "random"),
    [
        ("layerwise", ("aggregation", "pointer")),
        ("latent", ("prefix", "pointer", "aggregation.late")),
    ],
)
def test_heads_that_start_at_random_learn_faster_than_what_is_warm(
    architecture: str, random: tuple[str, ...]
) -> None:
    model = MODELS[architecture]()
    trained = TrainedModel(model)
    options = MiniOptions(data_directory=Path(), run_directory=Path(), minutes=1.0, head_rate=5.0)
    warm, heads = make_optimizer(trained, options).param_groups
    assert (warm["scale"], heads["scale"]) == (1.0, 5.0)
    fast = {id(p) for name in random for p in model.get_submodule(name).parameters()}
    fast |= {id(p) for p in trained.spans.parameters()}
    assert {id(p) for p in heads["params"]} == fast
    assert len(warm["params"]) + len(heads["params"]) == len(list(trained.parameters()))


@pytest.mark.parametrize(("slow", "pays"), [(torch.float32, True), (torch.bfloat16, False)])
def test_bfloat16_is_used_where_it_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, slow: torch.dtype, pays: bool
) -> None:
    # Six products in float32, then six in bfloat16, each between two looks at the clock.
    lasts = [9.0 if dtype is slow else 1.0 for dtype in (torch.float32, torch.bfloat16)]
    ticks = [tick for last in lasts for _ in range(6) for tick in (0.0, last)]
    monkeypatch.setattr(trainer, "PROBE_ROWS", 8)  # no clock is looked at but this one
    monkeypatch.setattr(trainer.time, "perf_counter", iter(ticks).__next__)
    assert trainer.bf16_pays.__wrapped__("cpu") is pays


def test_accelerators_train_in_bfloat16() -> None:
    assert trainer.bf16_pays("cuda")
