"""`mac snapshot`: the bank on disk. Of a running server by `--url`, else of the store itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from server.bank import DataDir, StoreUrl, named_store, reporting

app = typer.Typer(add_completion=False, no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Of the snapshot.")]
Url = Annotated[str | None, typer.Option(help="A server, which keeps snapshots on its own disk.")]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="Where snapshots are; snapshots in --data-dir.")
]


@app.callback()
def snapshot() -> None:
    """Take, list, verify and restore snapshots of the bank."""


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(help="The time in UTC when not given.")] = None,
    url: Url = None,
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    directory: Directory = None,
) -> None:
    """Copy every namespace at one version of it; a server may go on writing."""
    if url is not None:
        made = _ask_server(url, "POST", "/snapshots", {"name": name} if name else {})
        _show(made["name"], len(made["left_out"]), made["namespaces"])
        return
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.engine.maintenance import count_documents, create_snapshot

    store = named_store(data_dir, store_url)
    with reporting("mac snapshot create"), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("copy", total=count_documents(store))
        info = create_snapshot(
            store,
            _directory(data_dir, directory),
            name,
            advance=lambda amount: progress.advance(task, amount),
        )
    for namespace, document_id in info.left_out:
        typer.echo(f"corrupt, left out: document {document_id!r} of {namespace!r}", err=True)
    _show(
        info.name,
        len(info.left_out),
        [
            {"namespace": n.namespace, "documents": n.num_documents, "bank_version": n.version}
            for n in info.namespaces
        ],
    )


@app.command("list")
def list_(url: Url = None, data_dir: DataDir = None, directory: Directory = None) -> None:
    """Name each snapshot with its documents and bytes, oldest first."""
    if url is not None:
        for found in _ask_server(url, "GET", "/snapshots")["snapshots"]:
            count = sum(namespace["documents"] for namespace in found["namespaces"])
            typer.echo(f"{found['name']}  {count} documents  {found['bytes']} bytes")
        return
    from mac_core.engine.maintenance import list_snapshots

    for info in list_snapshots(_directory(data_dir, directory)):
        count = sum(namespace.num_documents for namespace in info.namespaces)
        typer.echo(f"{info.name}  {count} documents  {info.num_bytes} bytes")


@app.command()
def verify(
    name: Name, url: Url = None, data_dir: DataDir = None, directory: Directory = None
) -> None:
    """Compare every file with its checksum; exit code 1 when one differs."""
    if url is not None:
        _ask_server(url, "POST", f"/snapshots/{name}/verify", {})
    else:
        from mac_core.engine.maintenance import verify_snapshot

        with reporting("mac snapshot verify"):
            verify_snapshot(_directory(data_dir, directory), name)
    typer.echo(f"{name}: every file is what was written")


@app.command()
def restore(
    name: Name,
    url: Url = None,
    data_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="A data directory; made when missing.")
    ] = None,
    store_url: StoreUrl = None,
    directory: Directory = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Namespaces may hold documents, which go.")
    ] = False,
    bundle: Annotated[str, typer.Option(help="Bundle that will read it.")] = "mini",
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Whatever bundle made it; re-index afterwards.")
    ] = False,
) -> None:
    """Put namespaces back as they were: all of them, or none."""
    if url is not None:
        body = {"namespaces": namespace or None, "replace": replace}
        restored = _ask_server(url, "POST", f"/snapshots/{name}/restore", body)
        typer.echo(f"{restored['documents']} documents restored")
        return
    from rich.console import Console
    from rich.progress import Progress

    from mac_core.bundles import bundle_path
    from mac_core.engine.maintenance import bundle_fingerprint, restore_snapshot

    store = named_store(data_dir, store_url)
    with reporting("mac snapshot restore"), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("restore", total=None)
        result = restore_snapshot(
            store,
            _directory(data_dir, directory),
            name,
            fingerprint=None if as_is else bundle_fingerprint(bundle_path(bundle)),
            namespaces=namespace or None,
            is_replacing=replace,
            advance=lambda amount: progress.advance(task, amount),
        )
    typer.echo(f"{result.num_documents} documents restored")


def _directory(data_dir: Path | None, directory: Path | None) -> Path:
    if directory is not None:
        return directory
    if data_dir is None:
        raise typer.BadParameter("name where snapshots are: --dir or --data-dir")
    return data_dir / "snapshots"


def _show(name: str, num_left_out: int, namespaces: list[dict[str, Any]]) -> None:
    for found in namespaces:
        typer.echo(
            f"  {found['namespace']}: {found['documents']} documents "
            f"at version {found['bank_version']}"
        )
    typer.echo(name + (f"  ({num_left_out} corrupt records left out)" if num_left_out else ""))


def _ask_server(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    from server.client import Client, ServerRefused

    client = Client(url)
    try:
        return client.request(method, path, body)
    except ServerRefused as error:
        typer.echo(f"mac snapshot: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        client.close()
