"""`mac bank`: work on a store while no server uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def bank() -> None:
    """Maintain the bank of a stopped server."""


@app.command()
def reindex(
    data_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The server's data directory.")
    ] = None,
    store_url: Annotated[
        str | None, typer.Option(help="The servers' store, in place of a directory.")
    ] = None,
    bundle: Annotated[str, typer.Option(help="Bundle name or directory.")] = "mini",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
) -> None:
    """Make all modulations anew from the stored texts, for another bundle."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.reindex import reindex_with_bundle
    from mac_core.errors import MacError

    if (data_dir is None) == (store_url is None):
        raise typer.BadParameter("name the store: either --data-dir or --store-url")
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("reindex", total=None)
            count = reindex_with_bundle(
                store_url or f"sqlite:///{data_dir}",
                bundle_path(bundle),
                device=device,
                advance=lambda amount: progress.advance(task, amount),
            )
    except MacError as error:
        typer.echo(f"mac bank reindex: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{count} documents re-indexed")


@app.command()
def recall(
    kind: Annotated[str, typer.Argument(help="flat, ivf or hnsw.")],
    data_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The server's data directory.")
    ] = None,
    store_url: Annotated[
        str | None, typer.Option(help="The servers' store, in place of a directory.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Whose documents.")] = "default",
    questions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="One a line; else stored chunks ask."),
    ] = None,
    bundle: Annotated[str, typer.Option(help="Encodes the questions.")] = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Stored chunks that ask.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws them.")] = 0,
    probes: Annotated[int, typer.Option(min=1, help="As MAC_INDEX_PROBES.")] = 32,
    ef_search: Annotated[int, typer.Option(min=1, help="As MAC_INDEX_EF_SEARCH.")] = 128,
) -> None:
    """Compare what an index finds with what looking at every key finds, and how long each takes."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.config import IndexConfig
    from mac_core.engine.recall import recall_of_store
    from mac_core.errors import MacError

    if (data_dir is None) == (store_url is None):
        raise typer.BadParameter("name the store: either --data-dir or --store-url")
    if kind not in ("flat", "ivf", "hnsw"):
        raise typer.BadParameter(f"{kind!r} is not flat, ivf or hnsw")
    config = IndexConfig(kind=kind, probes=probes, ef_search=ef_search)  # type: ignore[arg-type]
    asked = questions.read_text(encoding="utf-8").split("\n") if questions else []
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("read the bank", total=None)
            report = recall_of_store(
                store_url or f"sqlite:///{data_dir}",
                config,
                namespace=namespace,
                bundle=bundle_path(bundle),
                questions=[line for line in asked if line.strip()],
                num_questions=limit,
                seed=seed,
                advance=lambda amount: progress.advance(task, amount),
            )
    except MacError as error:
        typer.echo(f"mac bank recall: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(report.to_text())
    typer.echo(report.to_json_line())
