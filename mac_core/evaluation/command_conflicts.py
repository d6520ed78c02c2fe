"""`mac evaluate conflicts`: options in, a card and one JSON line out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from mac_core.evaluation.session import (
    BatchSize,
    Bundle,
    Device,
    JsonOnly,
    MaxNewTokens,
    Modes,
    NumReadings,
    NumThreads,
    RunOptions,
    TopK,
    command_line,
    measuring,
    reporting_errors,
    show,
)


def conflicts(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="As deploy/demo/conflicts.jsonl."),
    ],
    background: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Further documents: SQuAD JSON, or .xz."),
    ] = None,
    modes: Modes = "memory,hybrid,text",
    bundle: Bundle = "mini",
    batch_size: BatchSize = 16,
    top_k: TopK = None,
    num_readings: NumReadings = None,
    max_new_tokens: MaxNewTokens = 32,
    device: Device = "cpu",
    num_threads: NumThreads = None,
    json_only: JsonOnly = False,
) -> None:
    """Facts that change between two documents: how often the later published one answers."""
    from mac_core.evaluation.conflicts import load_conflicts, run_conflicts
    from mac_core.evaluation.conflicts_report import card, to_json_line
    from mac_core.evaluation.dataset import load_squad_dev
    from mac_core.types import Mode

    known = [mode for mode in get_args(Mode) if mode != "none"]
    chosen = [mode.strip() for mode in modes.split(",")]
    if not set(chosen) <= set(known):
        raise typer.BadParameter(f"modes {modes!r}; there are {', '.join(known)}")
    options = RunOptions(
        data=data,
        seed=0,
        bundle=bundle,
        batch_size=batch_size,
        top_k=top_k,
        num_readings=num_readings,
        max_new_tokens=max_new_tokens,
        device=device,
        num_threads=num_threads,
    )
    with reporting_errors():
        pairs = load_conflicts(data)
        beside = load_squad_dev(background)[0] if background else ()
        with measuring(options, protocol="conflicts") as session:
            evaluation = run_conflicts(
                session.model,
                pairs,
                modes=chosen,  # type: ignore[arg-type]
                origin=session.origin,
                background=beside,
                track=session.track,
            )
    command = command_line(context)
    line = to_json_line(evaluation, command=command)
    show(card(evaluation, command=command), line, json_only=json_only)
