"""The run behind `mac ingest`: files are read and sent a batch at a time, with a progress bar.

There is no file of what was done: ids and texts decide. A run that was broken off is repeated, and
the server passes over what it has, without learning it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from server.client import Client, IngestReport, ServerRefused, SourceDocument, batches
from server.import_files import find_files
from server.import_parsers import read_documents

GO_ON = "the same command again goes on from here"


def run_import(names: Sequence[str], *, url: str, namespace: str, console: Console) -> IngestReport:
    """Send all documents of the named files; bad ones are reported and hold nothing up."""
    report = IngestReport()
    paths = find_files(names, report)
    client = Client(url)
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("ingest", total=sum(path.stat().st_size for path in paths))
            for batch in batches(_documents(paths, report)):
                client.add(batch, namespace, report)
                progress.advance(task, sum(document.num_bytes for document in batch))
            progress.update(task, completed=progress.tasks[0].total)
    except ServerRefused as error:
        report.failures.append(f"{url}: {error}; {GO_ON}")
    finally:
        client.close()
    return report


def _documents(paths: Sequence[Path], report: IngestReport) -> Iterator[SourceDocument]:
    for path in paths:
        for document in read_documents(path, report):
            report.num_read += 1
            yield document
