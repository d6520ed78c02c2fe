"""The command `mac`. Imports little, so that `mac --help` is quick and needs no torch.

`train`, `evaluate` and `bench` live in other rooms and are named by string: the server itself
imports none of them, and they are loaded only when called.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

DEFAULT_URL = "http://127.0.0.1:8000"
ATTACHED = {  # command -> where its typer app is
    "train": "mac_core.training.cli:app",
    "evaluate": "mac_core.evaluation.cli:app",
    "bench": "server.bench:app",
    "bank": "server.bank:app",
    "snapshot": "server.snapshot:app",
}


class AttachedGroup(TyperGroup):
    """Lists every command, and loads an attached one at the moment it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in ATTACHED:
            command = _load(name)
        return name, command, rest


def _load(name: str) -> Any:
    module, _, attribute = ATTACHED[name].partition(":")
    return typer.main.get_command(getattr(import_module(module), attribute))


app = typer.Typer(
    name="mac",
    cls=AttachedGroup,
    help="Documents change what a frozen language model answers, at the next question.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a rich traceback prints local variables: texts, questions
)

Url = Annotated[str, typer.Option(help="Where the server is.")]


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0: any free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where documents are kept.")] = None,
    store_url: Annotated[
        str | None, typer.Option(help="sqlite:///DIRECTORY or redis://HOST:PORT/DB.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle name or directory.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    num_threads: Annotated[int | None, typer.Option(help="CPU threads of one operation.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in force, and stop.")
    ] = False,
) -> None:
    """Serve HTTP. Each flag is also a MAC_ variable and a key of the settings file."""
    from server.settings import SettingsError, load_settings

    flags = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "store_url": store_url,
        "bundle": bundle,
        "device": device,
        "precision": precision,
        "num_threads": num_threads,
        "log_level": log_level,
        "log_format": log_format,
    }
    try:
        settings = load_settings(flags, config=config)
    except SettingsError as error:
        typer.echo(f"mac serve: {error}", err=True)
        raise typer.Exit(2) from None
    if print_config:
        typer.echo(settings.to_toml())
        return
    from server.serving import serve as run  # here: FastAPI and uvicorn are not for `--help`

    raise typer.Exit(run(settings))


@app.command()
def ingest(
    files: Annotated[
        list[str],
        typer.Argument(help="Files, directories or patterns: txt, md, html, pdf, jsonl, csv."),
    ],
    url: Url = DEFAULT_URL,
    namespace: Annotated[str, typer.Option(help="Where the documents go.")] = "default",
) -> None:
    """Send files to a server. Again with the same names sends nothing new: so it resumes, too."""
    from rich.console import Console

    from server.importing import run_import

    report = run_import(files, url=url, namespace=namespace, console=Console(stderr=True))
    for line in (*report.notes, *report.failures):
        typer.echo(line, err=True)
    typer.echo(report.summary())
    raise typer.Exit(1 if report.failures else 0)


@app.command()
def ask(
    question: str,
    url: Url = DEFAULT_URL,
    mode: Annotated[str, typer.Option(help="memory, hybrid, text or none.")] = "hybrid",
    namespace: Annotated[str, typer.Option(help="Whose documents answer.")] = "default",
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Below it, no answer; the server's own.")
    ] = None,
    num_readings: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="Readings apart; the server's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as it is.")] = False,
) -> None:
    """Ask one question; prints the answer or that there is none, its confidence and sources."""
    from server.client import Client, ServerRefused

    payload: dict[str, Any] = {"question": question, "mode": mode, "namespace": namespace}
    if min_confidence is not None:
        payload["min_confidence"] = min_confidence
    if num_readings is not None:
        payload["num_readings"] = num_readings
    client = Client(url)
    try:
        answer = client.ask(payload)
    except ServerRefused as error:
        typer.echo(f"mac ask: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        client.close()
    typer.echo(json.dumps(answer, ensure_ascii=False) if as_json else _readable(answer))


def _readable(answer: dict[str, Any]) -> str:
    said = [answer["answer"], answer["note"]]  # without an answer the note says why
    shown = [line for line in said if line]
    lines = [shown[0], f"confidence {answer['confidence']:.2f}", *shown[1:]]
    lines += [
        f"  {source['score']:.2f}  {source['id']}  {source['title'] or ''}\n"
        f"        {source['snippet']}"
        for source in answer["sources"]
    ]
    return "\n".join(lines)


@app.command()
def version() -> None:
    """Print the version and, in a source tree, the commit."""
    from server.version import package_version, source_commit

    commit = source_commit()
    typer.echo(f"mac-server {package_version()}" + (f" ({commit[:12]})" if commit else ""))


@app.command()
def train() -> None:
    """Train a bundle."""


@app.command()
def evaluate() -> None:
    """Measure a bundle on question-answering data."""


@app.command()
def bank() -> None:
    """Maintain the bank of a stopped server."""


@app.command()
def snapshot() -> None:
    """Take, list, verify and restore snapshots of the bank."""


@app.command()
def bench() -> None:
    """Measure a server's latency and throughput."""


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="mac", args=sys.argv[1:])


if __name__ == "__main__":
    main()
