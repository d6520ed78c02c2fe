"""`mac evaluate retention`: options in, a card and one JSON line out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mac_core.errors import InvalidInput
from mac_core.evaluation.session import (
    BatchSize,
    Bundle,
    Cache,
    Device,
    JsonOnly,
    Limit,
    MaxNewTokens,
    Modes,
    NumReadings,
    NumThreads,
    Plot,
    PrecisionOption,
    Resume,
    RunOptions,
    Seed,
    SquadFile,
    TopK,
    command_line,
    files_identity,
    measuring,
    parse_modes,
    reporting_errors,
    show,
)


def retention(
    context: typer.Context,
    data: SquadFile,
    distractors: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Files of further documents; repeatable."),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Documents in the bank, by comma; those of the first are asked of.")
    ] = "200,800,2000,8000,20000",
    modes: Modes = "memory",
    limit: Limit = None,
    seed: Seed = 0,
    bundle: Bundle = "mini",
    batch_size: BatchSize = 16,
    top_k: TopK = None,
    num_readings: NumReadings = None,
    max_new_tokens: MaxNewTokens = 32,
    device: Device = "cpu",
    precision: PrecisionOption = "float32",
    num_threads: NumThreads = None,
    resume: Resume = None,
    cache: Cache = None,
    plot: Plot = None,
    json_only: JsonOnly = False,
) -> None:
    """The first documents' questions, while the bank grows: the file's rest, then distractors."""
    from mac_core.evaluation.dataset import load_distractors, load_squad_dev, sample
    from mac_core.evaluation.plots import draw_retention, require_matplotlib
    from mac_core.evaluation.retention import Retention, run_retention
    from mac_core.evaluation.retention_report import card, to_json_line

    options = RunOptions(
        data=data,
        seed=seed,
        bundle=bundle,
        batch_size=batch_size,
        top_k=top_k,
        num_readings=num_readings,
        max_new_tokens=max_new_tokens,
        device=device,
        precision=precision,
        num_threads=num_threads,
        resume=resume,
        cache=cache,
    )
    chosen_modes, counts = parse_modes(modes), _parse_sizes(sizes)
    with reporting_errors():
        if plot is not None:
            require_matplotlib()
        documents, questions = load_squad_dev(data)
        first = {document.id for document in documents[: counts[0]]}
        asked = [question for question in questions if question.document_id in first]
        if not asked:
            raise InvalidInput(f"no question of {data.name} is on its first {counts[0]} documents")
        _, asked = sample(documents, asked, num_questions=limit, seed=seed)
        documents += load_distractors(distractors or [], known=documents)
        files = files_identity(distractors or [])
        with measuring(options, protocol="retention", distractors=files) as session:
            task = Retention(
                documents=documents,
                questions=asked,
                sizes=counts,
                modes=chosen_modes,
                origin=session.origin,
            )
            result = run_retention(
                session.model, task, cache=session.cache, log=session.log, track=session.track
            )
    if plot is not None:
        draw_retention(result, plot)
    command = command_line(context)
    line = to_json_line(result, command=command, distractors=files)
    show(card(result, command=command), line, json_only=json_only)


def _parse_sizes(sizes: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{sizes!r} is not numbers by comma") from error
