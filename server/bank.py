"""`mac bank`: work on a store while no server uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mac_core.config import DEFAULT_BITS, MODULATION_BITS, ModulationBits

DataDir = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="The server's data directory.")
]
StoreUrl = Annotated[str | None, typer.Option(help="The servers' store, in place of a directory.")]
Bundle = Annotated[str, typer.Option(help="Bundle name or directory.")]
Bits = Annotated[int, typer.Option(help="Of each stored value: 32, 16, 8, 4 or 2.")]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def bank() -> None:
    """Maintain the bank of a stopped server."""


@app.command()
def reindex(
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    bundle: Bundle = "mini",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
    bits: Bits = DEFAULT_BITS,
) -> None:
    """Make all modulations anew from the stored texts, for another bundle."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.reindex import reindex_with_bundle
    from mac_core.errors import MacError

    url = _store_url(data_dir, store_url)
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("reindex", total=None)
            count = reindex_with_bundle(
                url,
                bundle_path(bundle),
                device=device,
                bits=_known_bits(bits),
                advance=lambda amount: progress.advance(task, amount),
            )
    except MacError as error:
        typer.echo(f"mac bank reindex: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{count} documents re-indexed")


@app.command()
def compact(
    method: Annotated[
        str,
        typer.Option(help="bits, average, merge, prune, prune-random or codebook."),
    ],
    target: Annotated[
        float, typer.Option(help="Times smaller than float32: 4 is a byte for each value.")
    ],
    bits: Bits = DEFAULT_BITS,
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeatable. Default: all.")
    ] = None,
    bundle: Bundle = "mini",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would come of it; write nothing.")
    ] = False,
) -> None:
    """Make stored modulations smaller. Run again after a kill, it goes on where it was."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.compaction import compact_with_bundle
    from mac_core.errors import MacError

    url = _store_url(data_dir, store_url)
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("compact", total=None)
            reports = compact_with_bundle(
                url,
                bundle_path(bundle),
                method=method,
                target=target,
                bits=bits,
                namespaces=namespace,
                is_dry_run=dry_run,
                begin=lambda total: progress.update(task, total=total),
                advance=lambda amount: progress.advance(task, amount),
            )
    except MacError as error:
        typer.echo(f"mac bank compact: {error}", err=True)
        raise typer.Exit(1) from error
    for report in reports:
        typer.echo(report.sentence(is_dry_run=dry_run))


def _store_url(data_dir: Path | None, store_url: str | None) -> str:
    if (data_dir is None) == (store_url is None):
        raise typer.BadParameter("name the store: either --data-dir or --store-url")
    return store_url or f"sqlite:///{data_dir}"


def _known_bits(bits: int) -> ModulationBits:
    for known in MODULATION_BITS:
        if known == bits:
            return known
    raise typer.BadParameter(f"{bits} is not one of {MODULATION_BITS}")
