"""`mac evaluate compaction`: options in, a card and one JSON line out."""

from __future__ import annotations

from typing import Annotated

import typer

from mac_core.evaluation.session import (
    BatchSize,
    Bundle,
    Cache,
    Device,
    JsonOnly,
    Limit,
    MaxNewTokens,
    NumThreads,
    Plot,
    PrecisionOption,
    Resume,
    RunOptions,
    Seed,
    SquadFile,
    TopK,
    command_line,
    measuring,
    reporting_errors,
    show,
)

DEFAULT_SETTINGS = (
    "bits:1,bits:2,bits:4,bits:8,bits:16,codebook:16,merge:16@4,average:16@4,prune:16@4,"
    "prune-random:16@4,codebook:64,merge:64@4,average:64@4,prune:64@4,prune-random:64@4"
)


def compaction(
    context: typer.Context,
    data: SquadFile,
    settings: Annotated[
        str,
        typer.Option(
            help="METHOD:TARGET[@BITS] by comma; the target counts from float32, and the first "
            "setting is what the others are compared with."
        ),
    ] = DEFAULT_SETTINGS,
    limit: Limit = 500,
    seed: Seed = 0,
    bundle: Bundle = "mini",
    batch_size: BatchSize = 16,
    top_k: TopK = None,
    max_new_tokens: MaxNewTokens = 32,
    device: Device = "cpu",
    precision: PrecisionOption = "float32",
    num_threads: NumThreads = None,
    resume: Resume = None,
    cache: Cache = None,
    plot: Plot = None,
    json_only: JsonOnly = False,
) -> None:
    """The same questions in mode memory while the bank is stored in fewer and fewer bytes."""
    from mac_core.evaluation.compaction import CompactionTask, run_compaction
    from mac_core.evaluation.compaction_report import card, to_json_line
    from mac_core.evaluation.dataset import load_squad_dev, sample
    from mac_core.evaluation.plots import draw_compaction, require_matplotlib
    from mac_core.memory.compaction import parse_compaction

    options = RunOptions(
        data=data,
        seed=seed,
        bundle=bundle,
        batch_size=batch_size,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        device=device,
        precision=precision,
        num_threads=num_threads,
        resume=resume,
        cache=cache,
    )
    with reporting_errors():
        chosen = [parse_compaction(setting) for setting in settings.split(",")]
        if plot is not None:
            require_matplotlib()
        documents, questions = load_squad_dev(data)
        documents, questions = sample(documents, questions, num_questions=limit, seed=seed)
        with measuring(options, bits=32, protocol="compaction") as session:
            task = CompactionTask(
                documents=documents, questions=questions, settings=chosen, origin=session.origin
            )
            result = run_compaction(
                session.model, task, cache=session.cache, log=session.log, track=session.track
            )
    if plot is not None:
        draw_compaction(result, plot)
    command = command_line(context)
    line = to_json_line(result, command=command)
    show(card(result, command=command), line, json_only=json_only)
