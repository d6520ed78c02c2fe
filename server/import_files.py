"""Which files `mac ingest` reads: names, directories and patterns become paths, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from server.client import IngestReport
from server.import_parsers import SUFFIXES


def find_files(names: Sequence[str], report: IngestReport) -> list[Path]:
    """Files in the order of `names`, those of a directory or a pattern by path.

    A file that is named is read whatever it is called; of a directory, those of a known type. A
    name that leads to nothing fails in `report`.
    """
    found: dict[Path, None] = {}
    ignored: Counter[str] = Counter()
    for name in names:
        path = Path(name)
        if path.is_dir():
            found |= dict.fromkeys(_in_directory(path, ignored))
        elif path.exists():
            found[path] = None
        else:
            matches = sorted(Path(match) for match in glob(name, recursive=True))
            files = [match for match in matches if match.is_file()]
            found |= dict.fromkeys(files)
            if not files:
                report.not_read(name, "there is no such file, directory or match")
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        report.notes.append(f"not read, because of their type: {kinds}")
    return list(found)


def _in_directory(directory: Path, ignored: Counter[str]) -> Iterator[Path]:
    """Files of a known type at any depth; what begins with a dot is left alone."""
    for path in sorted(directory.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if is_hidden or not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        else:
            ignored[path.suffix or "without a suffix"] += 1
