"""From files to documents, by suffix. Libraries that only some files need are loaded with them.

Every document has an id made from the file's path, and the row or page in it: the same command
again sends the same ids, and a server that knows the text answers `unchanged`.
"""

from __future__ import annotations

import csv
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from server.client import IngestReport, Payload, SourceDocument

MAX_ID_CHARS = 256
MAX_TITLE_CHARS = 512
MAX_FIELD_CHARS = 16 * 1024**2  # of one CSV field; the csv module's own limit is 131,072
DELIMITERS = ",;\t|"

Reader = Callable[[Path, IngestReport], Iterator[SourceDocument]]


class Unreadable(Exception):
    """A file, or a part of it, that gives no document; says why."""


def read_documents(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    """Documents of one file, lazily. What cannot be read goes to `report` and ends no run."""
    read = READERS.get(path.suffix.lower(), _read_text)
    try:
        yield from read(path, report)
    except Unreadable as error:
        report.not_read(path.as_posix(), str(error))
    except UnicodeDecodeError as error:
        report.not_read(path.as_posix(), f"not readable as UTF-8 text: {error}")
    except OSError as error:
        report.not_read(path.as_posix(), f"cannot be read: {error.strerror or error}")
    except Exception as error:  # parsers of foreign formats raise what they like
        report.not_read(path.as_posix(), f"cannot be parsed: {type(error).__name__}: {error}")


def _read_text(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    yield _whole(path, _text_of(path), title=path.stem)


def _read_markdown(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    """Markdown as it stands: it is made to be read as text."""
    text = _text_of(path)
    heading = re.search(r"^#\s+(.+)$", text, re.MULTILINE)
    yield _whole(path, text, title=heading.group(1) if heading else path.stem)


def _read_html(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    try:
        from server.import_html import text_and_title
    except ImportError:
        raise _missing(path, "beautifulsoup4") from None
    text, title = text_and_title(path.read_bytes())
    yield _whole(path, text, title=title or path.stem)


def _read_pdf(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    """A document per page, so that a source names its page; pages without text are left out."""
    try:
        from pypdf import PdfReader
    except ImportError:
        raise _missing(path, "pypdf") from None
    pages = PdfReader(path).pages
    num_read = 0
    for number, page in enumerate(pages, start=1):
        text = page.extract_text().strip()
        if text:
            num_read += 1
            payload = {"text": text, "title": f"{path.stem}, page {number}"}
            yield _part(path, f"page-{number}", payload, num_bytes=_size(path) // len(pages))
    if not num_read:
        raise Unreadable(f"{len(pages)} pages without text: a scan needs OCR first")


def _read_jsonl(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    """A document object per line."""
    with path.open("rb") as lines:  # lines end at line feeds only, whatever a string holds
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(BOM_UTF8)  # files may have been put one behind the other
            if not line.strip():
                continue
            origin = f"{path.as_posix()}:{number}"
            try:
                payload = json.loads(line.decode())
            except UnicodeDecodeError as error:
                report.not_read(origin, f"not UTF-8: {error.reason} at byte {error.start + 1}")
                continue
            except ValueError as error:
                report.not_read(origin, f"not JSON: {error}")
                continue
            if isinstance(payload, dict):
                yield _part(path, str(number), payload, origin=origin, num_bytes=len(line))
            else:
                report.not_read(origin, "not a JSON object")


def _read_csv(path: Path, report: IngestReport) -> Iterator[SourceDocument]:
    """A document per row: the column `text`, or without one all columns with their names.

    Columns `id`, `title`, `published_at` are the document's own; others become metadata.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter=max(DELIMITERS, key=header.count), strict=True)
        for number, row in enumerate(rows, start=1):
            origin = f"{path.as_posix()}:{number}"
            if None in row or None in row.values():
                report.not_read(origin, f"row {number} has not as many fields as the header")
                continue
            num_bytes = sum(len(value) + 1 for value in row.values())
            yield _part(path, str(number), _row_payload(row), origin=origin, num_bytes=num_bytes)


def _row_payload(row: dict[str, str]) -> Payload:
    if "text" not in row:
        payload: Payload = {"text": "\n".join(f"{name}: {row[name]}" for name in row if row[name])}
        return payload | ({"id": row["id"]} if row.get("id") else {})
    own = {name: row[name] for name in ("id", "title", "published_at") if row.get(name)}
    metadata = {
        name: value
        for name, value in row.items()
        if name and value and name not in ("text", "id", "title", "published_at")
    }
    return {"text": row["text"], **own} | ({"metadata": metadata} if metadata else {})


def _whole(path: Path, text: str, *, title: str) -> SourceDocument:
    if not text.strip():
        raise Unreadable("it holds no text")
    payload = {
        "id": identifier(path),
        "title": title.strip()[:MAX_TITLE_CHARS],
        "text": text,
    }
    return SourceDocument(origin=path.as_posix(), payload=payload, num_bytes=_size(path))


def _part(
    path: Path, part: str, payload: dict[str, Any], *, num_bytes: int, origin: str | None = None
) -> SourceDocument:
    """One of several documents of a file; an id of its own stays."""
    return SourceDocument(
        origin=origin or f"{path.as_posix()}#{part}",
        payload={"id": identifier(path, part)} | payload,
        num_bytes=num_bytes,
    )


def identifier(path: Path, part: str = "") -> str:
    """`path#part`; of one that is too long the end, behind a hash of the whole."""
    name = path.as_posix() + (f"#{part}" if part else "")
    if len(name) <= MAX_ID_CHARS:
        return name
    digest = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{digest}:{name[len(digest) + 1 - MAX_ID_CHARS :]}"


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _size(path: Path) -> int:
    return path.stat().st_size


def _missing(path: Path, package: str) -> Unreadable:
    return Unreadable(f"reading {path.suffix} needs {package}: pip install 'mac-server[import]'")


READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
SUFFIXES = frozenset(READERS)
