"""A run that was stopped goes on exactly as one that was not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mac_core.errors import CheckpointError
from mac_core.training.resume import load_training_state, save_training_state


class TinyModel(nn.Module):
    """Dropout, a tied weight and an unused parameter: what makes resuming go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.mix = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)


def build(seed: int) -> tuple[TinyModel, Optimizer, np.random.Generator]:
    torch.manual_seed(seed)  # dropout draws from torch's own generator
    model = TinyModel()
    groups = [
        {"params": [model.embedding.weight], "weight_decay": 0.0},
        {"params": [*model.mix.parameters(), *model.unused.parameters()], "lr": 3e-2},
    ]
    return model, AdamW(groups, lr=1e-2, betas=(0.9, 0.98)), np.random.default_rng(seed)


def train(
    model: TinyModel, optimizer: Optimizer, rng: np.random.Generator, *, steps: range
) -> None:
    for step in steps:
        ids = torch.from_numpy(rng.integers(0, 8, size=16))
        logits = model.head(model.dropout(model.mix(model.embedding(ids))))
        nn.functional.cross_entropy(logits, ids).backward()
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.fixture(autouse=True)
def keep_torch_rng() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    whole = build(0)
    train(*whole, steps=range(6))

    stopped = build(0)
    train(*stopped, steps=range(3))
    model, optimizer, rng = stopped
    path = tmp_path / "run" / "training.safetensors"
    save_training_state(
        path, model=model, optimizer=optimizer, rng=rng, step=3, notes={"stage": "reader"}
    )

    model, optimizer, rng = build(1)
    progress = load_training_state(path, model=model, optimizer=optimizer, rng=rng)
    assert (progress.step, progress.notes) == (3, {"stage": "reader"})
    train(model, optimizer, rng, steps=range(3, 6))
    expected = whole[0].state_dict()
    assert all(value.equal(expected[name]) for name, value in model.state_dict().items())
    assert rng.bit_generator.state == whole[2].bit_generator.state
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer, rng = build(0)
    train(model, optimizer, rng, steps=range(2))
    path = tmp_path / "training.safetensors"
    save_training_state(path, model=model, optimizer=optimizer, rng=rng, step=2)
    return path


def test_load_refuses_another_model(saved: Path) -> None:
    _, optimizer, rng = build(0)
    with pytest.raises(CheckpointError, match=r"mix\.weight is unexpected"):
        load_training_state(saved, model=nn.Linear(4, 4), optimizer=optimizer, rng=rng)


def test_load_refuses_an_optimizer_of_other_parameters(saved: Path) -> None:
    model, _, rng = build(0)
    with pytest.raises(CheckpointError, match=r"\[8, 4\]"):
        load_training_state(saved, model=model, optimizer=AdamW(model.mix.parameters()), rng=rng)


def test_load_refuses_another_grouping_of_the_same_parameters(saved: Path) -> None:
    model, optimizer, rng = build(0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(CheckpointError, match="2 groups, this one has 1"):
        load_training_state(saved, model=model, optimizer=AdamW(parameters), rng=rng)


def test_load_refuses_the_same_parameters_in_another_order(saved: Path) -> None:
    # Defect 10: as many tensors, and each would be taken for another's.
    model, optimizer, rng = build(0)
    groups = [{"params": group["params"][::-1]} for group in optimizer.param_groups]
    with pytest.raises(CheckpointError, match=r"optimizer: parameters \[\[8, 4\]"):
        load_training_state(saved, model=model, optimizer=AdamW(groups), rng=rng)


def test_load_refuses_another_kind_of_optimizer(saved: Path) -> None:
    model, optimizer, rng = build(0)
    groups = [{"params": group["params"]} for group in optimizer.param_groups]
    with pytest.raises(CheckpointError, match="betas"):
        load_training_state(saved, model=model, optimizer=SGD(groups), rng=rng)


@pytest.mark.parametrize("content", [b"", b"nothing of ours"])
def test_load_refuses_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.safetensors"
    path.write_bytes(content)
    model, optimizer, rng = build(0)
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        load_training_state(path, model=model, optimizer=optimizer, rng=rng)


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    model, optimizer, rng = build(0)
    with pytest.raises(CheckpointError, match="absent"):
        load_training_state(tmp_path / "absent", model=model, optimizer=optimizer, rng=rng)
