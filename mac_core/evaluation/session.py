"""What every `mac evaluate` command does around its protocol: options, origin, log, cache, print.

Knows no protocol. Loads torch only when it measures.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mac_core.config import DEFAULT_BITS, ModulationBits, Precision
from mac_core.errors import MacError

if TYPE_CHECKING:
    from mac_core.evaluation.answer_log import AnswerLog
    from mac_core.evaluation.learned import Track
    from mac_core.evaluation.learned_cache import LearnedCache
    from mac_core.evaluation.protocol import EvaluationMode
    from mac_core.evaluation.results import Origin
    from mac_core.networks.model import MacModel

FILE_WIDTH = 132  # columns of the card where no terminal says how wide it is

SquadFile = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="SQuAD JSON, or .xz.")]
Modes = Annotated[str, typer.Option(help="By comma, each once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions, drawn by seed.")]
MaxDocuments = Annotated[
    int | None, typer.Option(min=1, help="Documents, drawn by seed; others are not asked of.")
]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Bundle = Annotated[str, typer.Option(help="Bundle name or directory.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions, or chunks, at once.")]
TopK = Annotated[
    int | None, typer.Option(min=0, help="Documents aggregated; 0: all; default: the bundle's.")
]
NumReadings = Annotated[
    int | None, typer.Option(min=1, help="Times --top-k read apart; default: the bundle's.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Of matrix products: float32 or bfloat16.")
]
NumThreads = Annotated[int | None, typer.Option(min=1, help="CPU threads of one operation.")]
Out = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write every answer here, JSON lines.")
]
Resume = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Directory that keeps answers; a killed run goes on here."),
]
Cache = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Directory that keeps learned documents for later runs."),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Answers below are withheld; default: the bundle's."),
]
Plot = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Draw the curve here, as SVG; needs [plot].")
]
JsonOnly = Annotated[bool, typer.Option("--json", help="No card, only the JSON line.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options that decide how a bundle is asked, and where a run's work is kept."""

    data: Path
    seed: int
    bundle: str
    batch_size: int
    top_k: int | None
    max_new_tokens: int
    device: str
    num_threads: int | None
    num_readings: int | None = None
    precision: str = "float32"
    resume: Path | None = None
    cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open run."""

    model: MacModel
    origin: Origin
    log: AnswerLog
    cache: LearnedCache
    track: Track


@contextmanager
def reporting_errors() -> Iterator[None]:
    """An error that a caller can act on is one line, and exit status 1."""
    try:
        yield
    except MacError as error:
        typer.echo(f"mac evaluate: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def measuring(
    options: RunOptions, *, bits: ModulationBits = DEFAULT_BITS, **identity: Any
) -> Iterator[Session]:
    """Load the bundle and open what the run keeps.

    Args:
        bits: of each stored value of what is learned.
        identity: what decides an answer beside the options; another run's answers are refused.
            `max_documents` as the command got it: without a draw the seed decides none.

    Raises:
        MacError: the bundle, the log or the cache cannot be used.
    """
    import torch

    from mac_core.bundles import bundle_path
    from mac_core.evaluation.answer_log import AnswerLog
    from mac_core.evaluation.learned_cache import LearnedCache
    from mac_core.networks.build import load_bundle

    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if options.precision not in get_args(Precision):
        raise typer.BadParameter(f"precision {options.precision!r}: not float32 or bfloat16")
    model = load_bundle(
        bundle_path(options.bundle),
        device=options.device,
        precision=options.precision,  # type: ignore[arg-type]
    )
    origin = _origin(model, options)
    log = AnswerLog(options.resume, run=_identity(origin, identity))
    kept = LearnedCache(
        _cache_directory(options), fingerprint=model.fingerprint, device=options.device, bits=bits
    )
    with kept as cache, _progress() as track:
        yield Session(model=model, origin=origin, log=log, cache=cache, track=track)


def parse_modes(modes: str) -> tuple[EvaluationMode, ...]:
    """Raises typer.BadParameter where a mode is not known or named twice."""
    from mac_core.evaluation.protocol import MODES

    named = [mode.strip() for mode in modes.split(",")]
    unknown = sorted(set(named) - set(MODES))
    if unknown or len(set(named)) != len(named):
        wrong = ", ".join(unknown) or "a mode named twice"
        raise typer.BadParameter(f"{wrong} in {modes!r}; there are {', '.join(MODES)}")
    return tuple(mode for name in named for mode in MODES if mode == name)


def show(card: RenderableType, line: str, *, json_only: bool) -> None:
    """The card for people, then the line for tools."""
    if not json_only:
        console = Console() if Console().is_terminal else Console(width=FILE_WIDTH)
        console.print(card)
    print(line)


def files_identity(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and hashes of further data files."""
    from mac_core.evaluation.origin import file_sha256

    return [{"file": path.name, "sha256": file_sha256(path)} for path in paths]


def command_line(context: typer.Context) -> str:
    """The command as it would be typed again; files by name, wherever they lay."""
    words = ["mac", "evaluate", str(context.info_name)]
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        value, option = context.params[str(parameter.name)], parameter.opts[0]
        if value is True:
            words.append(option)
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [option, one.name if isinstance(one, Path) else str(one)]
    return shlex.join(words)


def _cache_directory(options: RunOptions) -> Path | None:
    """What was learned in one precision is not what another would learn."""
    if options.cache is None or options.precision == "float32":
        return options.cache
    return options.cache / options.precision


def _origin(model: MacModel, options: RunOptions) -> Origin:
    import torch

    from mac_core.evaluation.origin import (
        code_sha256,
        config_fingerprint,
        file_sha256,
        source_commit,
    )
    from mac_core.evaluation.results import Origin

    selection = model.config.selection
    top_k = selection.top_k if options.top_k is None else options.top_k
    return Origin(
        commit=source_commit(),
        code_sha256=code_sha256(),
        bundle=model.config.name,
        config_fingerprint=config_fingerprint(model.config),
        amortization_hash=model.fingerprint.amortization_hash,
        base_lm_hash=model.fingerprint.base_lm_hash,
        data_file=options.data.name,
        data_sha256=file_sha256(options.data),
        seed=options.seed,
        top_k=top_k,
        num_readings=options.num_readings or selection.num_readings,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        precision=options.precision,
        num_threads=torch.get_num_threads(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _identity(origin: Origin, more: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an answer; not the draw of questions, which only decides what is asked.

    The code itself stands for its commit, which is one for all dirty trees.
    """
    values = asdict(origin)
    for name in ("date", "commit", "batch_size", "num_threads"):
        del values[name]
    if more.get("max_documents") is None:
        del values["seed"]
    return values | dict(more)


@contextmanager
def _progress() -> Iterator[Track]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:

        def track(what: str, total: int) -> Any:
            task = progress.add_task(what, total=total)
            return lambda amount: progress.advance(task, amount)

        yield track
