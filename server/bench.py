"""`mac bench`: how fast a running server learns and answers, over HTTP, on this machine only.

Starts a server of its own when none is named. Prints a card, then one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import lzma
from contextlib import nullcontext
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from random import Random
from secrets import token_hex
from time import perf_counter
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.bench_load import AskFigures, ask, ingest
from server.bench_process import ServerDidNotStart, own_server
from server.bench_report import BenchReport, Workload, card, to_json_line

INGEST_BATCH = 64
REQUEST_TIMEOUT_S = 120.0
FILE_WIDTH = 100  # columns of the card where no terminal says how wide it is

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def bench(
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="SQuAD JSON, or .xz.")],
    url: Annotated[str | None, typer.Option(help="A running server on this machine.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start a server, stop it after.")] = False,
    documents: Annotated[int, typer.Option(min=0, help="Documents to learn first.")] = 2067,
    questions: Annotated[int, typer.Option(min=1, help="Questions per mode and level.")] = 300,
    concurrency: Annotated[str, typer.Option(help="Questions in flight, by comma.")] = "1,16",
    mode: Annotated[str, typer.Option(help="Modes, by comma.")] = "memory,hybrid",
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="Nothing new is sent after.")] = 30.0,
    json_only: Annotated[bool, typer.Option("--json", help="Only the JSON line.")] = False,
) -> None:
    """Measure documents/s, then latency and questions/s of a closed loop of askers."""
    if (url is None) != start:
        raise typer.BadParameter("give either --url or --start")
    workload = load_workload(
        data,
        num_documents=documents,
        num_questions=questions,
        modes=tuple(mode.split(",")),
        concurrencies=_parse_levels(concurrency),
        seed=seed,
        max_seconds=60 * minutes,
    )
    try:
        with own_server() if url is None else nullcontext(check_loopback(url)) as address:
            report = asyncio.run(_measure_at(address, workload))
    except (ServerDidNotStart, httpx.HTTPError) as error:
        typer.echo(f"mac bench: {error}", err=True)
        raise typer.Exit(1) from error
    if not json_only:
        console = Console() if Console().is_terminal else Console(width=FILE_WIDTH)
        console.print(card(report))
    print(to_json_line(report))


def check_loopback(url: str) -> str:
    """`url` itself when it names this machine.

    Raises:
        typer.BadParameter: any other host: a load generator is not pointed at others.
    """
    host = httpx.URL(url).host
    try:
        is_here = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise typer.BadParameter(f"{host!r} is not a loopback address")
    return url


def _parse_levels(levels: str) -> tuple[int, ...]:
    try:
        parsed = tuple(int(level) for level in levels.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"concurrency {levels!r} is not numbers by comma") from error
    if min(parsed) < 1:
        raise typer.BadParameter(f"concurrency {levels!r} holds a level below 1")
    return parsed


def load_workload(
    data: Path,
    *,
    num_documents: int,
    num_questions: int,
    modes: tuple[str, ...],
    concurrencies: tuple[int, ...],
    seed: int,
    max_seconds: float,
) -> Workload:
    """The first distinct paragraphs of a SQuAD file and a seeded draw of their questions."""
    opener = lzma.open if data.suffix == ".xz" else open
    with opener(data, "rt", encoding="utf-8") as stream:
        articles = json.load(stream)["data"]
    by_text = {p["context"]: (a["title"], p) for a in articles for p in a["paragraphs"]}
    chosen = list(by_text.items())[:num_documents]
    # With no document to learn, the questions of the whole file still measure the bare LM.
    asked = [item["question"] for _, (_, p) in chosen or by_text.items() for item in p["qas"]]
    drawn = Random(seed).sample(asked, min(num_questions, len(asked)))
    return Workload(
        documents=tuple({"text": text, "title": title} for text, (title, _) in chosen),
        questions=tuple(drawn),
        modes=modes,
        concurrencies=concurrencies,
        seed=seed,
        max_seconds=max_seconds,
    )


async def _measure_at(url: str, workload: Workload) -> BenchReport:
    limits = httpx.Limits(max_connections=max(workload.concurrencies))
    async with httpx.AsyncClient(
        base_url=url, trust_env=False, timeout=REQUEST_TIMEOUT_S, limits=limits
    ) as client:
        return await measure(client, workload)


async def measure(client: httpx.AsyncClient, workload: Workload) -> BenchReport:
    """Learn, then ask at every mode and concurrency; in a namespace of its own, left behind."""
    deadline = perf_counter() + workload.max_seconds
    namespace = f"bench-{token_hex(4)}"  # fresh, or every document would be `unchanged`
    version = (await client.get("/version")).raise_for_status().json()
    with _progress() as progress:
        task = progress.add_task("learn", total=len(workload.documents))
        learned = await ingest(
            client,
            workload.documents,
            namespace=namespace,
            batch_size=INGEST_BATCH,
            deadline=deadline,
            advance=lambda amount: progress.advance(task, amount),
        )
        asks = [
            await _ask_level(client, workload, namespace, mode, level, deadline, progress)
            for mode in workload.modes
            for level in workload.concurrencies
        ]
    return BenchReport(
        url=str(client.base_url),
        server_version=version,
        workload=workload,
        ingest=learned,
        asks=tuple(asks),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


async def _ask_level(
    client: httpx.AsyncClient,
    workload: Workload,
    namespace: str,
    mode: str,
    concurrency: int,
    deadline: float,
    progress: Progress,
) -> AskFigures:
    task = progress.add_task(f"ask {mode} x{concurrency}", total=len(workload.questions))
    return await ask(
        client,
        workload.questions,
        namespace=namespace,
        mode=mode,
        concurrency=concurrency,
        deadline=deadline,
        advance=lambda amount: progress.advance(task, amount),
    )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
