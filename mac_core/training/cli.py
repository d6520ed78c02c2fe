"""`mac train`: one command from data to bundle. Loads torch only when it trains."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mac_core.training.options import MODES, SOURCES, MiniOptions, parse_mode_shares

if TYPE_CHECKING:
    from mac_core.training.calibration import Calibration

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train the networks of a bundle."""


@app.command()
def mini(
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Training data.")],
    run: Annotated[Path, typer.Option(help="Checkpoints and log; goes on where it stopped.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Wall clock, over all resumptions.")],
    bundle: Annotated[Path | None, typer.Option(help="Write the bundle here.")] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Train this bundle's weights further."),
    ] = None,
    start_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of its weights, in what is exported.")
    ] = 0.0,
    selection_restarts: Annotated[
        bool, typer.Option("--selection-restarts", help="But for the layers that select.")
    ] = False,
    reading_restarts: Annotated[
        bool,
        typer.Option("--reading-restarts", help="What reads modulations begins as its base LM."),
    ] = False,
    depth: Annotated[
        int, typer.Option(min=1, max=4, help="Layers that make a modulation; others read it.")
    ] = 2,
    selection_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the minutes, the last, for selection alone.")
    ] = 0.1,
    span_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Of the rest, the first, for where answers stand."),
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="At its peak.")] = 3e-4,
    modes: Annotated[
        str, typer.Option(help="What a step trains, and how often, in proportion.")
    ] = ",".join(f"{mode}:{share}" for mode, share in MODES),
    bank_after: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the minutes without distractors.")
    ] = 0.4,
    max_documents: Annotated[
        int, typer.Option(min=1, help="The right one and its distractors, where there are any.")
    ] = 2,
    crowded_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the steps after that, with distractors.")
    ] = 0.35,
    max_tokens: Annotated[
        int, typer.Option(min=16, help="Of a paragraph; of a longer one, a part is read.")
    ] = 192,
    past_documents: Annotated[
        int, typer.Option(min=0, help="Of earlier steps, among which a question finds its own.")
    ] = 2048,
    dropout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Pays where questions come again and again.")
    ] = 0.0,
    distillation_weight: Annotated[
        float, typer.Option(min=0.0, help="Of the text's reading, for memory's; 0: not at all.")
    ] = 0.5,
    null_weight: Annotated[
        float, typer.Option(min=0.0, help="Of documents that should say they do not answer.")
    ] = 0.3,
    validation_questions: Annotated[
        int, typer.Option(min=0, help="Held-out questions whose losses are logged at the end.")
    ] = 512,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    num_paragraphs: Annotated[int, typer.Option(min=4, help="Paragraphs a step.")] = 16,
    sources: Annotated[str, typer.Option(help="Corpora by comma; name:share draws less.")] = (
        ",".join(SOURCES)
    ),
    dtype: Annotated[str, typer.Option(help="Of the bundle: int8, bfloat16, float32.")] = "int8",
    calibration_questions: Annotated[int, typer.Option(min=10)] = 300,
) -> None:
    """Train `mini` and, with --bundle, calibrate and export it."""
    from mac_core.errors import MacError
    from mac_core.training.mini import export_mini, train_mini

    try:
        shares = parse_mode_shares(modes)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--modes") from error
    of_a_start = {
        "--start-share": start_share > 0.0,
        "--selection-restarts": selection_restarts,
        "--reading-restarts": reading_restarts,
    }
    for hint, is_given in of_a_start.items():
        if is_given and start_from is None:
            raise typer.BadParameter("needs a bundle in --start-from", param_hint=hint)
    if (reading_restarts or selection_restarts) and start_share:
        raise typer.BadParameter(
            "weights that restart have none before them", param_hint="--start-share"
        )
    options = replace(
        MiniOptions(data_directory=data, run_directory=run, minutes=minutes),
        start_from=start_from,
        start_share=start_share,
        selection_restarts=selection_restarts,
        reading_restarts=reading_restarts,
        depth=depth,
        selection_share=selection_share,
        span_share=span_share,
        learning_rate=learning_rate,
        modes=shares,
        bank_after=bank_after,
        max_documents=max_documents,
        crowded_share=crowded_share,
        max_tokens=max_tokens,
        past_documents=past_documents,
        dropout=dropout,
        distillation_weight=distillation_weight,
        null_weight=null_weight,
        validation_questions=validation_questions,
        seed=seed,
        device=device,
        num_threads=num_threads,
        num_paragraphs=num_paragraphs,
        sources=tuple(name for name in sources.split(",") if name),
    )
    if dtype not in ("int8", "bfloat16", "float32"):
        raise typer.BadParameter(f"{dtype!r} is not int8, bfloat16 or float32")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("train", total=minutes)

            def report(line: dict[str, float]) -> None:
                progress.update(task, completed=line["minutes"])
                progress.console.print(json.dumps(line), soft_wrap=True, highlight=False)

            train_mini(options, report=report)
        if bundle is not None:
            calibration = export_mini(
                options,
                bundle,
                dtype=dtype,  # type: ignore[arg-type]
                calibration_questions=calibration_questions,
            )
            print(_line(calibration))
    except (MacError, ValueError) as error:
        typer.echo(f"mac train: {error}", err=True)
        raise typer.Exit(1) from error


def _line(calibration: Calibration) -> str:
    return json.dumps(
        {
            "dense_scale": calibration.selection.dense_scale,
            "bm25_scale": calibration.selection.bm25_scale,
            "top_k": calibration.selection.top_k,
            "held_out_f1_by_top_k": calibration.f1_by_top_k,
            "held_out_f1_by_mode": calibration.f1_by_mode,
            "questions": calibration.num_questions,
            "confidence": {
                mode: asdict(quality) for mode, quality in calibration.confidence_quality.items()
            },
        }
    )
