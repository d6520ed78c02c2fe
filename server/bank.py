"""`mac bank`: work on a store without a server: re-index, export, verify, compact."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, TextIO, cast

import typer

from mac_core.config import DEFAULT_BITS, MODULATION_BITS, IndexConfig, ModulationBits

DataDir = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="The server's data directory.")
]
StoreUrl = Annotated[str | None, typer.Option(help="The servers' store, in place of a directory.")]
Bundle = Annotated[str, typer.Option(help="Bundle name or directory.")]
Bits = Annotated[int, typer.Option(help="Of each stored value: 32, 16, 8, 4 or 2.")]
_INDEX = IndexConfig()

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
    everything: Annotated[
        bool, typer.Option("--all", help="This bundle's own too: whole again after a compaction.")
    ] = False,
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
            bits=_known_bits(bits),
            everything=everything,
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
    """Write documents as JSON lines that `mac ingest` and POST /documents take again.

    Exit code 1 when corrupt records are left out.
    """
    from mac_core.engine.maintenance import export_documents
    from server.exporting import line_of

    count, corrupt = 0, list[str]()
    with reporting("mac bank export"), _replacing(out) as lines:
        now = time.time()
        url = named_store(data_dir, store_url)
        for info in export_documents(url, namespace, skip=lambda e: corrupt.append(str(e))):
            if info.expires_at is not None and info.expires_at <= now:
                continue
            lines.write(json.dumps(line_of(info), ensure_ascii=False) + "\n")
            count += 1
    for line in corrupt:
        typer.echo(line, err=True)
    left_out = f", {len(corrupt)} corrupt left out" if corrupt else ""
    typer.echo(f"{count} documents exported{left_out}", err=True)
    raise typer.Exit(1 if corrupt else 0)


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


@contextmanager
def _replacing(path: Path | None) -> Iterator[TextIO]:
    """A file that takes the place of `path` once all of it is written; None: standard output.

    What a link points to is replaced, not the link. A file keeps the mode that it had.
    """
    if path is None:
        yield sys.stdout
        return
    if path.exists() and not path.is_file():  # a pipe or a device
        with path.open("w", encoding="utf-8") as device:
            yield device
        return
    path = path.resolve()
    with NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield cast(TextIO, file)
        except BaseException:
            Path(file.name).unlink()
            raise
    mask = os.umask(0)
    os.umask(mask)
    # A temporary file is its owner's alone.
    Path(file.name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~mask)
    Path(file.name).replace(path)


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

    url = named_store(data_dir, store_url)
    with reporting("mac bank compact"), Progress(console=Console(stderr=True)) as progress:
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
    for report in reports:
        typer.echo(report.sentence(is_dry_run=dry_run))


@app.command()
def recall(
    kind: Annotated[str, typer.Argument(help="flat, ivf or hnsw.")],
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    namespace: Annotated[str, typer.Option(help="Whose documents.")] = "default",
    questions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="One a line; else stored chunks ask."),
    ] = None,
    bundle: Annotated[str, typer.Option(help="Encodes the questions.")] = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Stored chunks that ask.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws them.")] = 0,
    probes: Annotated[int, typer.Option(min=1, help="As MAC_INDEX_PROBES.")] = _INDEX.probes,
    ef_search: Annotated[
        int, typer.Option(min=1, help="As MAC_INDEX_EF_SEARCH.")
    ] = _INDEX.ef_search,
) -> None:
    """Compare what an index finds with what looking at every key finds, and how long each takes."""
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.recall import recall_of_store

    if kind not in ("flat", "ivf", "hnsw"):
        raise typer.BadParameter(f"{kind!r} is not flat, ivf or hnsw")
    url = named_store(data_dir, store_url)
    config = IndexConfig(kind=kind, probes=probes, ef_search=ef_search)  # type: ignore[arg-type]
    asked = questions.read_text(encoding="utf-8").split("\n") if questions else []
    with reporting("mac bank recall"), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("read the bank", total=None)
        report = recall_of_store(
            url,
            config,
            namespace=namespace,
            bundle=bundle_path(bundle),
            questions=[line for line in asked if line.strip()],
            num_questions=limit,
            seed=seed,
            advance=lambda amount: progress.advance(task, amount),
        )
    typer.echo(report.to_text())
    typer.echo(report.to_json_line())


def _known_bits(bits: int) -> ModulationBits:
    for known in MODULATION_BITS:
        if known == bits:
            return known
    raise typer.BadParameter(f"{bits} is not one of {MODULATION_BITS}")
