"""Between rows of the SQLite store and documents. Runs no statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mac_core.errors import CorruptRecord
from mac_core.memory.record_format import decode_record
from mac_core.memory.records import DocumentRecord, canonical_json
from mac_core.memory.sqlite_schema import metadata_of
from mac_core.types import DocumentInfo, Fingerprint

MAX_IDS_PER_STATEMENT = 500
INFO = (
    "position, id, title, num_chunks, num_tokens, created_at, updated_at, published_at, "
    "expires_at, version, metadata"
)
# Not a column: tables of an older version have none. A header that is harmed says nothing here.
PINNED = (  # of a header that is damaged: not
    "CASE WHEN typeof(header) = 'text' AND json_valid(header) "
    "THEN COALESCE(json_extract(header, '$.document.pinned'), 0) ELSE 0 END"
)
RECORD = "position, id, version, created_at, header, payload"
INSERT = """
INSERT INTO documents (namespace, id, title, metadata, published_at, expires_at, created_at,
    updated_at, content_hash, version, num_chunks, num_tokens, num_bytes, header, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def row_of(
    record: DocumentRecord, header: str, payload: bytes, *, version: int, created_at: float
) -> tuple[object, ...]:
    times = (record.published_at, record.expires_at, created_at, record.updated_at)
    sizes = (len(record.chunks), record.num_tokens, len(header) + len(payload))
    return (
        *(record.namespace, record.id, record.title, canonical_json(record.metadata)),
        *(*times, record.content_hash, version, *sizes, header, payload),
    )


def record_of(
    namespace: str, row: Sequence[Any], fingerprint: Fingerprint | None
) -> DocumentRecord:
    _, document_id, version, created_at, header, payload = row
    name = f"document {document_id!r} of namespace {namespace!r}"
    try:
        return decode_record(
            header,
            payload,
            fingerprint=fingerprint,
            version=version,
            created_at=created_at,
            name=name,
        )
    except CorruptRecord as error:
        raise CorruptRecord(str(error), document_id=document_id) from error


def info_of(namespace: str, row: Sequence[Any]) -> DocumentInfo:
    *columns, pinned = row
    values = dict(zip(INFO.split(", "), columns, strict=True))
    del values["position"]
    values["metadata"] = metadata_of(values["metadata"])
    return DocumentInfo(namespace=namespace, pinned=bool(pinned), **values)


def in_parts(ids: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    """Parts small enough for one statement, each with its question marks."""
    for start in range(0, len(ids), MAX_IDS_PER_STATEMENT):
        part = ids[start : start + MAX_IDS_PER_STATEMENT]
        yield part, ", ".join("?" * len(part))
