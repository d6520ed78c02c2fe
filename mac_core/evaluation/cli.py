"""`mac evaluate`: options in, a card and one JSON line out. Loads torch only when it measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mac_core.evaluation.learned import Track
    from mac_core.evaluation.protocol import EvaluationMode
    from mac_core.evaluation.results import Origin
    from mac_core.networks.model import MacModel

DEFAULT_MODES = "none,text,memory,hybrid,oracle,oracle-text"
FILE_WIDTH = 132  # columns of the card where no terminal says how wide it is

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a bundle on question-answering data."""


@app.command()
def squad_seq(
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="SQuAD JSON, or .xz.")],
    modes: Annotated[str, typer.Option(help="By comma, each once.")] = DEFAULT_MODES,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions, drawn by seed.")] = None,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Documents, drawn by seed; others are not asked of.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    bundle: Annotated[str, typer.Option(help="Bundle name or directory.")] = "mini",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions, or chunks, at once.")] = 16,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Documents aggregated; 0: all; default: the bundle's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 32,
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
    num_threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of one operation.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write every answer here, JSON lines.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Directory that keeps answers; a killed run goes on here."
        ),
    ] = None,
    json_only: Annotated[bool, typer.Option("--json", help="No card, only the JSON line.")] = False,
) -> None:
    """Every paragraph into the bank, then every question (arXiv 2403.04317, section 4)."""
    import torch

    from mac_core.bundles import bundle_path
    from mac_core.errors import MacError
    from mac_core.evaluation.answer_log import AnswerLog
    from mac_core.evaluation.dataset import load_squad_dev, sample
    from mac_core.evaluation.report import card, to_json_line, write_predictions
    from mac_core.evaluation.squad_seq import SquadSeq, run_squad_seq
    from mac_core.networks.build import load_bundle

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    chosen_modes = _parse_modes(modes)
    try:
        documents, questions = sample(
            *load_squad_dev(data), num_documents=max_documents, num_questions=limit, seed=seed
        )
        model = load_bundle(bundle_path(bundle), device=device)
        origin = _origin(
            model,
            data,
            seed=seed,
            top_k=model.config.selection.top_k if top_k is None else top_k,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            device=device,
        )
        log = AnswerLog(resume, run=_identity(origin, max_documents=max_documents))
        task = SquadSeq(documents=documents, questions=questions, modes=chosen_modes, origin=origin)
        with _progress() as track:
            evaluation, predictions = run_squad_seq(model, task, log=log, track=track)
    except MacError as error:
        typer.echo(f"mac evaluate: {error}", err=True)
        raise typer.Exit(1) from error
    if out is not None:
        write_predictions(out, questions, predictions)
    if not json_only:
        console = Console() if Console().is_terminal else Console(width=FILE_WIDTH)
        console.print(card(evaluation))
    print(to_json_line(evaluation))


def _parse_modes(modes: str) -> tuple[EvaluationMode, ...]:
    from mac_core.evaluation.protocol import MODES

    named = [mode.strip() for mode in modes.split(",")]
    unknown = sorted(set(named) - set(MODES))
    if unknown or len(set(named)) != len(named):
        wrong = ", ".join(unknown) or "a mode named twice"
        raise typer.BadParameter(f"{wrong} in {modes!r}; there are {', '.join(MODES)}")
    return tuple(mode for name in named for mode in MODES if mode == name)


def _origin(model: MacModel, data: Path, *, seed: int, device: str, **options: int) -> Origin:
    import torch

    from mac_core.evaluation.origin import config_fingerprint, file_sha256, source_commit
    from mac_core.evaluation.results import Origin

    return Origin(
        commit=source_commit(),
        bundle=model.config.name,
        config_fingerprint=config_fingerprint(model.config),
        amortization_hash=model.fingerprint.amortization_hash,
        base_lm_hash=model.fingerprint.base_lm_hash,
        data_file=data.name,
        data_sha256=file_sha256(data),
        seed=seed,
        device=device,
        num_threads=torch.get_num_threads(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        **options,
    )


def _identity(origin: Origin, *, max_documents: int | None) -> dict[str, Any]:
    """What decides an answer; not the draw of questions, which only decides what is asked."""
    values = asdict(origin)
    for name in ("date", "batch_size", "num_threads"):
        del values[name]
    if max_documents is None:
        del values["seed"]
    return values | {"max_documents": max_documents}


@contextmanager
def _progress() -> Iterator[Track]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:

        def track(what: str, total: int) -> Any:
            task = progress.add_task(what, total=total)
            return lambda amount: progress.advance(task, amount)

        yield track
