"""`mac bank`: work on a store without a server: re-index, export, verify."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, TextIO

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="The server's data directory.")
]
StoreUrl = Annotated[str | None, typer.Option(help="The servers' store, in place of a directory.")]


@app.callback()
def bank() -> None:
    """Maintain the bank of a stopped server."""


@app.command()
def reindex(
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    bundle: Annotated[str, typer.Option(help="Bundle name or directory.")] = "mini",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
) -> None:
    """Make modulations of other networks anew from the stored texts; goes on after a break."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.reindex import reindex_with_bundle

    with reporting("mac bank reindex"), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("reindex", total=None)
        count = reindex_with_bundle(
            named_store(data_dir, store_url),
            bundle_path(bundle),
            device=device,
            begin=lambda total: progress.update(task, total=total),
            advance=lambda amount: progress.advance(task, amount),
        )
    typer.echo(f"{count} documents re-indexed")


@app.command()
def export(
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    namespace: Annotated[str, typer.Option(help="Whose documents.")] = "default",
    out: Annotated[Path | None, typer.Option(help="A file; standard output by default.")] = None,
) -> None:
    """Write documents as JSON lines that `mac ingest` and POST /documents take again."""
    from mac_core.engine.maintenance import export_documents
    from server.exporting import line_of

    count = 0
    with reporting("mac bank export"), _opened(out) as lines:
        now = time.time()
        for info in export_documents(named_store(data_dir, store_url), namespace):
            if info.expires_at is not None and info.expires_at <= now:
                continue
            lines.write(json.dumps(line_of(info), ensure_ascii=False) + "\n")
            count += 1
    typer.echo(f"{count} documents exported", err=True)


@app.command()
def verify(data_dir: DataDir = None, store_url: StoreUrl = None) -> None:
    """Compare every record with its checksums; exit code 1 when some are corrupt, and which."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.engine.maintenance import count_documents, verify_bank

    url = named_store(data_dir, store_url)
    with reporting("mac bank verify"), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("verify", total=count_documents(url))
        found = verify_bank(url, advance=lambda amount: progress.advance(task, amount))
    for line in found.corrupt:
        typer.echo(line, err=True)
    typer.echo(f"{found.num_documents} documents, {len(found.corrupt)} corrupt")
    raise typer.Exit(1 if found.corrupt else 0)


def _opened(path: Path | None) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdout) if path is None else path.open("w", encoding="utf-8")


def named_store(data_dir: Path | None, store_url: str | None) -> str:
    """
    Raises:
        BadParameter: none is named, or two are.
    """
    if (data_dir is None) == (store_url is None):
        raise typer.BadParameter("name the store: either --data-dir or --store-url")
    return store_url or f"sqlite:///{data_dir}"


@contextmanager
def reporting(command: str) -> Iterator[None]:
    """An error that a caller can act on as one line and exit code 1."""
    from mac_core.errors import MacError

    try:
        yield
    except MacError as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(1) from error
