"""A device gives the CPU's logits and losses, and the engine serves on it. Run with `-m gpu`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mac_core.networks.model import MacModel
from mac_core.types import Mode
from tests.builders import tiny_latent_model
from tests.unit.networks.model_samples import DAM, ELBE, MODELS, QUESTIONS, SHORT, request_for

HAS_CUDA = torch.cuda.is_available()
DEVICES = ("cuda",)  # "cpu" here proves the tests themselves, where there is no other device
FLOAT32 = {"rel": 1e-3, "abs": 1e-3}  # other kernels; TF32 is off by default
MODES: tuple[Mode, ...] = ("memory", "hybrid", "text")
STEPS = 3  # the queue holds documents from the second on

pytestmark = pytest.mark.skipif("cuda" in DEVICES and not HAS_CUDA, reason="no CUDA device")


@contextmanager
def scores_seen(model: MacModel) -> Iterator[list[Tensor]]:
    """The vocabulary's scores at every step, on the CPU."""
    seen: list[Tensor] = []
    logits = model.base_lm.logits

    def noting(hidden: Tensor) -> Tensor:
        scores = logits(hidden)
        seen.append(scores.float().cpu())
        return scores

    model.base_lm.logits = noting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        model.base_lm.logits = logits  # type: ignore[method-assign]


def logits_of(model: MacModel, mode: Mode) -> Tensor:
    """Of the first token after one question: `(1, 1, vocabulary)`."""
    documents = [ELBE, SHORT, DAM] if mode != "text" else []
    texts = (ELBE,) if mode != "memory" else ()
    request = request_for(model, QUESTIONS[0], documents, texts=texts, max_new_tokens=1)
    with scores_seen(model) as seen:
        model.answer([request])
    return seen[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_one_question_has_the_cpus_logits(name: str, mode: Mode, device: str) -> None:
    expected = logits_of(MODELS[name](), mode)
    found = logits_of(MODELS[name]().to(device), mode)
    torch.testing.assert_close(found, expected, rtol=FLOAT32["rel"], atol=FLOAT32["abs"])


def losses_of(mode: Mode, device: str) -> list[dict[str, float]]:
    """Each step's losses, the gradients of each being finite."""
    from mac_core.training.past import PastDocuments
    from mac_core.training.step import StepConfig, training_loss
    from tests.unit.training.samples import sample, seeded

    model, past, generator = tiny_latent_model().to(device), PastDocuments(8), seeded()
    config = StepConfig(mode=mode, num_documents=3, distillation_weight=0.5)
    found = []
    for step in range(STEPS):
        batch = sample(seed=step, num_paragraphs=2)
        losses = training_loss(model, batch, config, generator=generator, past=past)
        losses["total"].backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(grad.isfinite().all()) for grad in grads)
        model.zero_grad()
        found.append({name: float(loss.detach()) for name, loss in losses.items()})
    assert (len(past) > 2) == (mode != "text")  # of two documents a step, one may come again
    return found


@pytest.mark.skipif(importlib.util.find_spec("bm25s") is None, reason="training needs bm25s")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_training_has_the_cpus_losses(
    mode: Mode, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mac_core.training.step as step

    # What rows stand together weighs the distillation: the same ones on both devices.
    monkeypatch.setattr(step, "NUM_GPU_BUCKETS", step.NUM_BUCKETS)
    pairs = zip(losses_of(mode, device), losses_of(mode, "cpu"), strict=True)
    for found, wanted in pairs:
        assert found == pytest.approx(wanted, **FLOAT32)


@pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="the engine needs redis")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engine_learns_and_answers_with_the_shipped_bundle(
    precision: str, device: str, tmp_path: Path
) -> None:
    from mac_core.bundles import bundle_path
    from mac_core.config import EngineConfig
    from mac_core.engine import Engine
    from mac_core.types import Document, Question

    bundle = bundle_path("mini")
    if not (bundle / "manifest.json").is_file():
        pytest.skip("no bundle is shipped")
    config = EngineConfig(device=device, precision=precision)  # type: ignore[arg-type]
    engine = Engine(bundle=bundle, store_directory=tmp_path, config=config)
    engine.start()
    try:
        assert engine.wait_until_ready(timeout_s=120.0), engine.status().detail
        text = "The Millbrook bridge was opened in 1987 by the engineer Dora Lindqvist."
        (added,) = engine.add([Document(id="bridge", text=text)]).result(60.0)
        assert added.status == "inserted"
        for mode in ("memory", "hybrid", "text"):
            question = Question(text="Who opened the Millbrook bridge?", mode=mode)  # type: ignore[arg-type]
            answer = engine.ask(question).result(60.0)
            assert "lindqvist" in (answer.text or "").lower()
    finally:
        engine.close(now=True)
