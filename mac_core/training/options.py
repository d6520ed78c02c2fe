"""What a training run may be told; every field is written into the bundle's manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mac_core.types import Mode

# The first gives the held-out articles and most of the steps.
SOURCES = ("squad", "squadshifts-reddit", "squadshifts-amazon", "fairytaleqa", "infilling")
# Share of the steps that train each mode; reading a modulation is the product, so it leads.
MODES: tuple[tuple[Mode, float], ...] = (
    ("memory", 0.45),
    ("hybrid", 0.40),
    ("text", 0.14),
    ("none", 0.01),
)
NUM_LAYERS = 6  # of all-MiniLM-L6-v2, which every layer begins as


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniOptions:
    """Options of `mac train mini`.

    Raises:
        ValueError: selection would need a layer that MiniLM does not have.
    """

    data_directory: Path
    run_directory: Path
    minutes: float  # wall-clock budget of this run; the learning rate falls to 0 at its end
    start_from: Path | None = None  # a bundle whose weights are trained further; None: MiniLM's
    start_share: float = 0.0  # of that bundle's weights, in what is exported
    seed: int = 0
    num_paragraphs: int = 16  # per step, half of them neighbours of the others
    questions_per_paragraph: int = 4
    max_tokens: int = 192  # of a paragraph in training
    # As many as an answer is given: a longer one is cut, and taught to end in the middle.
    max_answer_tokens: int = 32
    learning_rate: float = 3e-4
    head_rate: float = 2.0  # times the learning rate, for what starts at random
    selection_share: float = 0.1  # of the budget, at its end: selection's own layers alone
    span_share: float = 0.0  # of the rest, at its beginning: only where the answers stand
    selection_restarts: bool = False  # with `start_from`: those layers begin as MiniLM's again
    # With `start_from`: what makes and reads modulations begins as the base LM's own layers, which
    # read text; the bundle may then be of another `depth`.
    reading_restarts: bool = False
    modes: tuple[tuple[Mode, float], ...] = MODES
    bank_after: float = 0.4  # share of the budget after which distractors join
    max_documents: int = 2  # the right one and its distractors
    crowded_share: float = 0.35  # of the steps after `bank_after`, those with distractors
    dropout: float = 0.0  # in every Transformer layer; pays once questions come again and again
    distillation_weight: float = 0.5  # of the text's reading, for the same questions without it
    null_weight: float = 0.3  # of documents that do not answer and do not say so
    past_documents: int = 2048  # encoded in earlier steps, beside the batch's own
    validation_questions: int = 512  # on held-out articles, asked once the minutes are spent
    held_out_fraction: float = 0.04  # articles kept for calibration and choice of settings
    split_seed: int = 0  # which articles those are: the same for every `seed`, or none compares
    num_virtual_tokens: int = 256  # slots of a chunk, framing included, and of a target
    depth: int = 2  # encoder layers that a document runs through before any question is known
    selection_layers: int = 2  # above them, for the selection key alone
    document_position: int = 64  # of a document's first token, behind any question's
    num_prefix_tokens: int = 64  # best slots that the base LM gets in every layer
    d_pointer: int = 128
    d_late: int = 64  # width of the late interaction that ranks documents
    checkpoint_minutes: float = 3.0
    log_every: int = 25  # steps
    device: str = "cpu"
    num_threads: int = 2
    further_share: float = 0.35  # of the paragraphs of each source but the first that is drawn
    sources: tuple[str, ...] = SOURCES  # `name`, or `name:share` with a share of its own

    def __post_init__(self) -> None:
        if self.depth + self.selection_layers > NUM_LAYERS:
            raise ValueError(
                f"depth={self.depth} and selection_layers={self.selection_layers} above it need "
                f"more layers than the {NUM_LAYERS} of MiniLM"
            )


def parse_mode_shares(text: str) -> tuple[tuple[Mode, float], ...]:
    """`memory:3,hybrid:1` as modes and their shares, scaled to 1.

    Raises:
        ValueError: an unknown mode, one named twice, or a share that is no positive number.
    """
    shares = dict[Mode, float]()
    for named in text.split(","):
        name, share = parse_share(named)
        mode = next((mode for mode in get_args(Mode) if mode == name), None)
        if mode is None or mode in shares:
            raise ValueError(f"{named!r} is not one of {', '.join(get_args(Mode))}, each once")
        if share is None:
            raise ValueError(f"{named!r} is not a mode and its share of the steps")
        shares[mode] = share
    return tuple((mode, share / sum(shares.values())) for mode, share in shares.items())


def parse_share(named: str) -> tuple[str, float | None]:
    """`name:share` as the two, or `name` as itself and None.

    Raises:
        ValueError: the share is no positive number.
    """
    name, colon, share = named.partition(":")
    if not colon:
        return name, None
    try:
        value = float(share)
    except ValueError as error:
        raise ValueError(f"{named!r}: {share!r} is not a share") from error
    if not 0.0 < value < math.inf:
        raise ValueError(f"{named!r}: a share is above 0")
    return name, value
