"""The tiny models on a CUDA device give the CPU's answers. Run with `pytest -m gpu`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mac_core.networks.model import MacModel
from mac_core.training.step import StepConfig, training_loss
from tests.unit.networks.model_samples import MODELS, comparable, mixed_requests
from tests.unit.training.samples import sample, seeded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FLOAT32 = {"rel": 1e-3, "abs": 1e-3}  # other kernels; TF32 is off by default
ROUNDING = 1e-6  # of a probability in float32
BFLOAT16 = 5e-2  # of a probability: 8 bits of mantissa through two layers


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> MacModel:
    return MODELS[request.param]()


def test_float32_answers_are_the_cpus(model: MacModel) -> None:
    expected = model.answer(mixed_requests(model))
    model.to("cuda")
    for answer, wanted in zip(model.answer(mixed_requests(model)), expected, strict=True):
        assert comparable(answer) == comparable(wanted)
        assert answer.confidence == pytest.approx(wanted.confidence, **FLOAT32)
        assert answer.document_mass == pytest.approx(wanted.document_mass, **FLOAT32)


def test_bfloat16_gives_the_first_token_a_like_probability(model: MacModel) -> None:
    requests = [replace(asked, max_new_tokens=1) for asked in mixed_requests(model)[:2]]
    expected = [answer.confidence for answer in model.answer(requests)]
    model.to("cuda")
    whole = [answer.confidence for answer in model.answer(requests)]
    model.precision = "bfloat16"
    lowered = [answer.confidence for answer in model.answer(requests)]
    assert lowered != pytest.approx(whole, abs=ROUNDING)  # or float32 is compared with itself
    assert lowered == pytest.approx(expected, abs=BFLOAT16)


def test_training_step_gives_the_cpus_loss() -> None:
    model, config = MODELS["layerwise-bert"](), StepConfig(mode="hybrid", num_documents=3)
    on_cpu = float(training_loss(model, sample(), config, generator=seeded())["total"].detach())
    losses = training_loss(model.to("cuda"), sample(), config, generator=seeded())
    losses["total"].backward()
    assert float(losses["total"].detach()) == pytest.approx(on_cpu, **FLOAT32)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
