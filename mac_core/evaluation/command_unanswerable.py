"""`mac evaluate unanswerable`: options in, a card and one JSON line out."""

from __future__ import annotations

import typer

from mac_core.evaluation.session import (
    BatchSize,
    Bundle,
    Cache,
    Device,
    JsonOnly,
    Limit,
    MaxDocuments,
    MaxNewTokens,
    MinConfidence,
    Modes,
    NumReadings,
    NumThreads,
    Out,
    Plot,
    PrecisionOption,
    Resume,
    RunOptions,
    Seed,
    SquadFile,
    TopK,
    command_line,
    measuring,
    parse_modes,
    reporting_errors,
    show,
)


def unanswerable(
    context: typer.Context,
    data: SquadFile,
    modes: Modes = "memory,hybrid",
    limit: Limit = None,
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
    out: Out = None,
    resume: Resume = None,
    cache: Cache = None,
    plot: Plot = None,
    json_only: JsonOnly = False,
) -> None:
    """SQuAD 2.0: how well the confidence tells answerable questions, and right answers, apart."""
    from mac_core.evaluation.abstention import thresholds
    from mac_core.evaluation.dataset import load_squad_dev, sample
    from mac_core.evaluation.plots import draw_risk_coverage, require_matplotlib
    from mac_core.evaluation.report import write_predictions
    from mac_core.evaluation.unanswerable import Unanswerable, run_unanswerable
    from mac_core.evaluation.unanswerable_report import card, to_json_line

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
        if plot is not None:
            require_matplotlib()
        documents, questions = sample(
            *load_squad_dev(data, keep_unanswerable=True),
            num_documents=max_documents,
            num_questions=limit,
            seed=seed,
        )
        with measuring(options, protocol="unanswerable", max_documents=max_documents) as session:
            task = Unanswerable(
                documents=documents,
                questions=questions,
                modes=chosen_modes,
                min_confidence=thresholds(
                    session.model.config, chosen_modes, min_confidence=min_confidence
                ),
                origin=session.origin,
            )
            evaluation, predictions = run_unanswerable(
                session.model, task, cache=session.cache, log=session.log, track=session.track
            )
    if out is not None:
        write_predictions(out, questions, predictions)
    if plot is not None:
        draw_risk_coverage(evaluation, plot)
    command = command_line(context)
    line = to_json_line(evaluation, command=command)
    show(card(evaluation, command=command), line, json_only=json_only)
