"""`mac evaluate`: options in, a card and one JSON line out. Loads torch only when it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mac_core.evaluation.command_compaction import compaction
from mac_core.evaluation.command_conflicts import conflicts
from mac_core.evaluation.command_locality import locality
from mac_core.evaluation.command_retention import retention
from mac_core.evaluation.command_unanswerable import unanswerable
from mac_core.evaluation.session import (
    FILE_WIDTH,
    BatchSize,
    Bundle,
    Cache,
    Device,
    JsonOnly,
    Limit,
    MaxDocuments,
    MaxNewTokens,
    Modes,
    NumReadings,
    NumThreads,
    Out,
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

__all__ = ["FILE_WIDTH", "app"]

DEFAULT_MODES = "none,text,memory,hybrid,oracle,oracle-text"

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a bundle on question-answering data."""


@app.command()
def squad_seq(
    context: typer.Context,
    data: SquadFile,
    modes: Modes = DEFAULT_MODES,
    limit: Limit = None,
    max_documents: MaxDocuments = None,
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
    json_only: JsonOnly = False,
) -> None:
    """Every paragraph into the bank, then every question (arXiv 2403.04317, section 4)."""
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
    _ask_everything(
        "squad-seq",
        options,
        modes=modes,
        limit=limit,
        max_documents=max_documents,
        held_out=False,
        out=out,
        command=command_line(context),
        json_only=json_only,
    )


@app.command()
def transfer(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="SQuAD's or FairytaleQA's layout, or .xz."),
    ],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only questions on articles left out of training.")
    ] = False,
    modes: Modes = DEFAULT_MODES,
    limit: Limit = None,
    max_documents: MaxDocuments = None,
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
    json_only: JsonOnly = False,
) -> None:
    """As squad-seq, on a corpus of another kind; a FairytaleQA section is a document."""
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
    _ask_everything(
        "transfer-held-out" if held_out else "transfer",
        options,
        modes=modes,
        limit=limit,
        max_documents=max_documents,
        held_out=held_out,
        out=out,
        command=command_line(context),
        json_only=json_only,
    )


app.command()(compaction)
app.command()(retention)
app.command()(locality)
app.command()(unanswerable)
app.command()(conflicts)


def _ask_everything(
    dataset: str,
    options: RunOptions,
    *,
    modes: str,
    limit: int | None,
    max_documents: int | None,
    held_out: bool,
    out: Path | None,
    command: str,
    json_only: bool,
) -> None:
    """Learn a file's documents, ask its questions in every mode, print."""
    from mac_core.bundles import bundle_path
    from mac_core.evaluation.dataset import load_questions, sample
    from mac_core.evaluation.report import card, to_json_line, write_predictions
    from mac_core.evaluation.squad_seq import SquadSeq, run_squad_seq
    from mac_core.evaluation.transfer import held_out_questions, training_options

    chosen_modes = parse_modes(modes)
    with reporting_errors():
        documents, questions = load_questions(options.data)
        if held_out:
            left_out = training_options(bundle_path(options.bundle))
            questions = held_out_questions(options.data, documents, questions, options=left_out)
        documents, questions = sample(
            documents,
            questions,
            num_documents=max_documents,
            num_questions=limit,
            seed=options.seed,
        )
        with measuring(options, max_documents=max_documents) as session:
            task = SquadSeq(
                documents=documents,
                questions=questions,
                modes=chosen_modes,
                origin=session.origin,
                dataset=dataset,
            )
            evaluation, predictions = run_squad_seq(
                session.model, task, log=session.log, cache=session.cache, track=session.track
            )
    if out is not None:
        write_predictions(out, questions, predictions)
    line = to_json_line(evaluation, command=command)
    show(card(evaluation, command=command), line, json_only=json_only)
