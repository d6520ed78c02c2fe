"""The training loop: wall-clock budget, stages by share of it, checkpoints, a log to read later.

The last stage trains the layers that only selection uses, and nothing else: all of a step then goes
into telling documents apart, and what is read stays what it was.

A run is a directory: `state/` to resume from, `log.jsonl`, and the bundle once it is exported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from mac_core.networks.latent import LatentAmortization
from mac_core.networks.model import MacModel
from mac_core.networks.refine import RefineAggregation
from mac_core.networks.stack import EncoderStack
from mac_core.training.data import Batch, sample_batch
from mac_core.training.encoding import EncodedParagraphs, IntArray
from mac_core.training.options import MiniOptions
from mac_core.training.past import PastDocuments
from mac_core.training.provenance import check_trained_with, options_record
from mac_core.training.resume import load_training_state, read_notes, save_training_state
from mac_core.training.spans import TrainedModel
from mac_core.training.step import StepConfig, selection_only, training_loss
from mac_core.training.validation import held_out_losses
from mac_core.types import Fingerprint

STATE_FILE = "state.safetensors"
WARM_UP = 0.02  # share of the budget
PROBE_ROWS = 2048  # of the product that is timed in either precision: tokens of a step
SELECTION_TIMES = 4  # as many paragraphs a step where only selection is trained
SELECTION_SCALE = 20.0  # of a cosine, in nats


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    questions: int = 0

    def share(self, options: MiniOptions) -> float:
        """Part of the budget that is spent, in [0, 1]."""
        return min(1.0, self.elapsed_s / (60.0 * options.minutes))


class Trainer:
    """Trains one model on one encoded corpus until its minutes are spent."""

    def __init__(
        self,
        model: MacModel,
        encoded: EncodedParagraphs,
        neighbours: IntArray,
        options: MiniOptions,
        *,
        start: Fingerprint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._trained = TrainedModel(model)
        self.options = options
        self._start = start  # of the bundle whose weights `model` begins with
        self._clock = clock  # seconds; the budget is counted by it
        self.progress = Progress()
        self._encoded = encoded
        self._neighbours = neighbours
        self._optimizer = make_optimizer(self._trained, options)
        self._rng = np.random.default_rng(options.seed)
        self._past = PastDocuments(options.past_documents) if model.points_at_slots else None
        self._device_type = torch.device(options.device).type  # of "cuda:1", "cuda"
        self._autocasts = bf16_pays(self._device_type)
        self._selection = selection_layers(model)
        self._log = options.run_directory / "log.jsonl"

    @property
    def state_file(self) -> Path:
        return self.options.run_directory / STATE_FILE

    def resume(self) -> bool:
        """Go on from the run's last checkpoint; False when there is none.

        Raises:
            CheckpointError: it is damaged, or other options or another start trained it.
        """
        if not self.state_file.is_file():
            return False
        self.progress = load_progress(
            self._trained, self._optimizer, self.options, start=self._start, rng=self._rng
        )
        return True

    def save(self) -> None:
        """Write a checkpoint that `resume` takes up."""
        progress = asdict(self.progress)
        save_training_state(
            self.state_file,
            model=self._trained,
            optimizer=self._optimizer,
            rng=self._rng,
            step=progress.pop("step"),
            notes={"progress": progress, "options": options_record(self.options, self._start)},
        )

    def run(self) -> Iterator[dict[str, float]]:
        """Train until the budget is spent; yields the averages of every `log_every` steps."""
        self.model.train()
        set_dropout(self.model, self.options.dropout)
        if self.options.device == "cpu" and self._autocasts:
            # Where bfloat16 pays, so does written-out attention backward; elsewhere the fused one.
            for part in self.model.modules():
                if isinstance(part, EncoderStack | PreTrainedModel):
                    part.set_attn_implementation("eager")
        window: list[dict[str, Tensor]] = []
        saved = self.progress.elapsed_s
        while self.progress.share(self.options) < 1.0:
            began = self._clock()
            window.append(self._step())
            self.progress.elapsed_s += self._clock() - began
            if len(window) == self.options.log_every:
                yield self._report(window)
                window = []
            if self.progress.elapsed_s - saved > 60.0 * self.options.checkpoint_minutes:
                self.save()
                saved = self.progress.elapsed_s
        self.save()

    def _step(self) -> dict[str, Tensor]:
        options, share = self.options, self.progress.share(self.options)
        reading = 1.0 if self._selection is None else 1.0 - options.selection_share
        if share < reading:
            self._set_rate(share / reading)
            config = draw_step(options, share=share / reading, rng=self._rng)
            # Where answers stand is asked of what reads; which words there are stays as it is.
            self.model.base_lm.input_embeddings.requires_grad_(config.answers)
            batch = self._sample(options.num_paragraphs)
            losses, mode = self._read(batch, config), str(config.mode)
        else:
            self._set_rate((share - reading) / (1.0 - reading))
            batch = self._sample(SELECTION_TIMES * options.num_paragraphs)
            losses, mode = self._select(batch), "alone"
        losses["total"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._trained.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.questions += len(batch.question_ids)
        return {
            f"{name}_{mode}": loss.detach()  # read later: a GPU is not waited for
            for name, loss in losses.items()
            if name != "total"
        }

    def _set_rate(self, share: float) -> None:
        """The rate of a stage, `share` of which is spent: up for a moment, then down to 0."""
        rate = self.options.learning_rate * min(1.0, share / WARM_UP + 0.01, (1.0 - share) + 0.005)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def _read(self, batch: Batch, config: StepConfig) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(self._rng.integers(2**62)))
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocasts):
            return training_loss(
                self.model,
                batch,
                config,
                generator=generator,
                past=self._past,
                spans=self._trained.spans,
            )

    def _select(self, batch: Batch) -> dict[str, Tensor]:
        assert self._selection is not None
        self.model.requires_grad_(False)
        self._selection.requires_grad_(True)
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocasts):
            loss = selection_only(self.model, batch, scale=SELECTION_SCALE)
        return {"selection": loss, "total": loss}

    def _sample(self, num_paragraphs: int) -> Batch:
        with_questions = self._encoded.num_with_questions
        return sample_batch(
            self._encoded,
            self._neighbours,
            rng=self._rng,
            num_paragraphs=min(num_paragraphs, max(with_questions, self.options.num_paragraphs)),
            questions_per_paragraph=self.options.questions_per_paragraph,
            max_tokens=self.options.max_tokens,
            max_answer_tokens=self.options.max_answer_tokens,
        )

    def validate(self, encoded: EncodedParagraphs, neighbours: IntArray) -> dict[str, float]:
        """Measure and log the losses on held-out paragraphs; none where none are asked for."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocasts):
            losses = held_out_losses(self.model, encoded, neighbours, self.options)
        return self._written({f"held_out_{name}": loss for name, loss in losses.items()})

    def _report(self, window: list[dict[str, Tensor]]) -> dict[str, float]:
        names = sorted({name for losses in window for name in losses})
        return self._written(
            {
                name: float(np.mean([float(losses[name]) for losses in window if name in losses]))
                for name in names
            }
        )

    def _written(self, values: dict[str, float]) -> dict[str, float]:
        line = {
            "step": self.progress.step,
            "minutes": round(self.progress.elapsed_s / 60.0, 2),
            "questions": self.progress.questions,
            **{name: round(value, 4) for name, value in values.items()},
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def load_progress(
    trained: TrainedModel,
    optimizer: AdamW,
    options: MiniOptions,
    *,
    start: Fingerprint | None,
    rng: np.random.Generator,
) -> Progress:
    """Put everything where the run's last checkpoint has it.

    Args:
        start: of the bundle `options.start_from`.

    Raises:
        CheckpointError: there is none, it is damaged, or other options or another start trained it.
    """
    path = options.run_directory / STATE_FILE
    check_trained_with(path, read_notes(path), options_record(options, start))
    saved = load_training_state(path, model=trained, optimizer=optimizer, rng=rng)
    return Progress(step=saved.step, **saved.notes["progress"])


def draw_step(options: MiniOptions, *, share: float, rng: np.random.Generator) -> StepConfig:
    """What the next step trains, `share` of the budget being spent.

    The bank grows with training: a document alone at first, then mostly among distractors.
    """
    modes, weights = zip(*options.modes, strict=True)
    mode = modes[int(rng.choice(len(modes), p=weights))]
    many = share >= options.bank_after and rng.random() < options.crowded_share
    answers = share >= options.span_share
    return StepConfig(
        mode=mode if answers or mode == "text" else "memory",
        answers=answers,
        num_documents=options.max_documents if many else 1,
        distillation_weight=options.distillation_weight,
        null_weight=options.null_weight,
    )


def selection_layers(model: MacModel) -> nn.Module | None:
    """The layers that make selection keys and nothing else; None: the model has none of its own."""
    return model.amortization.upper if isinstance(model.amortization, LatentAmortization) else None


def set_dropout(model: nn.Module, probability: float) -> None:
    """Of what every layer adds to its states; without effect outside training mode.

    Not of attention's weights, most of the random numbers that a layer would draw: on a CPU they
    cost as much as all its products. The configurations stay as they are: a bundle says nothing of
    how it was trained.
    """
    weights = {id(part.dropout) for part in model.modules() if isinstance(part, BertSelfAttention)}
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0 if id(part) in weights else probability


def make_optimizer(trained: TrainedModel, options: MiniOptions) -> AdamW:
    """AdamW in two groups: warm-started weights, and heads that start at random."""
    model = trained.model
    heads = [*trained.spans.parameters(), *model.prefix.parameters()]
    if not isinstance(model.aggregation, RefineAggregation):
        heads += [*model.aggregation.parameters()]
    elif model.aggregation.late is not None:
        heads += [*model.aggregation.late.parameters()]
    heads += [] if model.pointer is None else [*model.pointer.parameters()]
    mine = {id(parameter) for parameter in heads}
    warm = [parameter for parameter in trained.parameters() if id(parameter) not in mine]
    return AdamW(
        [{"params": warm, "scale": 1.0}, {"params": heads, "scale": options.head_rate}],
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )


@cache
def bf16_pays(device: str) -> bool:
    """Whether a product of a training step's size is faster in bfloat16: measured once, some 50 ms.

    CPUs without the instruction emulate it, and some that have it are faster in float32.
    """
    if device != "cpu":
        return True
    seconds = dict[torch.dtype, float]()
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(PROBE_ROWS, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = list[float]()
        for _ in range(6):  # the first sets its kernel up
            began = time.perf_counter()
            rows @ weight
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]
