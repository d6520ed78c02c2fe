"""`mac evaluate locality`: options in, a card and one JSON line out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mac_core.evaluation.session import (
    BatchSize,
    Bundle,
    Cache,
    Device,
    JsonOnly,
    MaxDocuments,
    MaxNewTokens,
    MinConfidence,
    Modes,
    NumReadings,
    NumThreads,
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


def locality(
    context: typer.Context,
    data: SquadFile,
    questions: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Questions about nothing in --data."),
    ],
    modes: Modes = "memory",
    limit: Annotated[int, typer.Option(min=1, help="Questions of each file, by seed.")] = 500,
    max_documents: MaxDocuments = None,
    min_confidence: MinConfidence = None,
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
    json_only: JsonOnly = False,
) -> None:
    """Questions about nothing in the bank: how many get the bare LM's answer, or none."""
    from mac_core.evaluation.abstention import thresholds
    from mac_core.evaluation.dataset import load_questions, load_squad_dev, sample
    from mac_core.evaluation.locality import Locality, run_locality
    from mac_core.evaluation.locality_report import card, to_json_line

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
    chosen_modes = parse_modes(modes)
    with reporting_errors():
        documents, inside = sample(
            *load_squad_dev(data), num_documents=max_documents, num_questions=limit, seed=seed
        )
        _, outside = sample(*load_questions(questions), num_questions=limit, seed=seed)
        files = files_identity([questions])
        with measuring(
            options, protocol="locality", questions=files, max_documents=max_documents
        ) as session:
            task = Locality(
                documents=documents,
                outside=outside,
                inside=inside,
                modes=chosen_modes,
                min_confidence=thresholds(
                    session.model.config, chosen_modes, min_confidence=min_confidence
                ),
                origin=session.origin,
            )
            evaluation = run_locality(
                session.model, task, cache=session.cache, log=session.log, track=session.track
            )
    command = command_line(context)
    line = to_json_line(evaluation, command=command, questions=files)
    show(card(evaluation, command=command), line, json_only=json_only)
