"""What a training run may be told; every field is written into the bundle's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniOptions:
    """Options of `mac train mini`."""

    data_directory: Path
    run_directory: Path
    minutes: float  # wall-clock budget of this run; the learning rate falls to 0 at its end
    seed: int = 0
    num_paragraphs: int = 16  # per step, half of them neighbours of the others
    questions_per_paragraph: int = 4
    max_tokens: int = 192  # of a paragraph in training
    max_answer_tokens: int = 12
    learning_rate: float = 2e-4
    head_rate: float = 3.0  # times the learning rate, for what starts at random
    bank_after: float = 0.4  # share of the budget after which distractors join
    max_documents: int = 4  # the right one and its distractors
    held_out_fraction: float = 0.04  # articles kept for calibration and choice of settings
    num_virtual_tokens: int = 64
    pool: int = 4
    d_pointer: int = 128
    checkpoint_minutes: float = 5.0
    log_every: int = 25  # steps
    device: str = "cpu"
    num_threads: int = 2
    sources: tuple[str, ...] = ("squad",)
