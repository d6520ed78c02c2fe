"""Two processes that train together: one model, twice the questions, one log."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mac_core.training.parallel import Group, companions
from tests.builders import tiny_latent_model
from tests.unit.training.test_trainer import STEPS, trainer_in, weights


def train(group: Group, directory: Path) -> None:
    """What the companion does, in a process of its own; its weights are left in a file."""
    torch.set_num_threads(1)
    trainer = trainer_in(directory, model=tiny_latent_model(), group=group)
    list(trainer.run())
    torch.save(
        {"weights": weights(trainer.model), "drawn": trainer._rng.bit_generator.state},
        directory / f"{group.rank}.pt",
    )


def test_processes_share_weights_and_not_batches(tmp_path: Path) -> None:
    with companions(train, 2, tmp_path) as group:
        assert group is not None
        train(group, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0.0, atol=0.0)
    assert first["drawn"] != second["drawn"]
    untrained = weights(tiny_latent_model())
    assert any(not torch.equal(first["weights"][name], untrained[name]) for name in untrained)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["questions"] == 2 * 4 * STEPS


def test_alone_there_is_no_group(tmp_path: Path) -> None:
    with companions(train, 1, tmp_path) as group:
        assert group is None
    assert not list(tmp_path.iterdir())
