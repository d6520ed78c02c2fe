"""Between what the Redis store keeps of a document and the document. Speaks to no server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from mac_core.errors import CorruptRecord, InvalidInput
from mac_core.memory.record_format import decode_record
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import DocumentStamp
from mac_core.types import DocumentInfo, Fingerprint, NamespaceInfo

NAMESPACE_FIELDS = ("version", "chunks", "bytes", "created_at", "updated_at", "deleted_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the store assigned to a document, and what is read without its header.

    Kept as words with spaces between them: a script reads and writes it too, and numbers must not
    pass through its floats.
    """

    version: int
    mark: str  # of the write
    position: int  # order of writing, never used twice
    created_at: float
    num_chunks: int
    num_tokens: int
    num_bytes: int
    content_hash: str

    @classmethod
    def parse(cls, stamp: bytes) -> Self:
        version, mark, position, created_at, *sizes, content_hash = stamp.decode().split(" ", 7)
        num_chunks, num_tokens, num_bytes = map(int, sizes)
        return cls(
            version=int(version),
            mark=mark,
            position=int(position),
            created_at=float(created_at),
            num_chunks=num_chunks,
            num_tokens=num_tokens,
            num_bytes=num_bytes,
            content_hash=content_hash,
        )

    def to_document_stamp(self) -> DocumentStamp:
        return DocumentStamp(
            content_hash=self.content_hash,
            num_chunks=self.num_chunks,
            num_tokens=self.num_tokens,
            created_at=self.created_at,
            version=self.version,
        )


class Row(NamedTuple):
    """One document as it lies in Redis, read in one transaction; `payload` may be left out."""

    id: str
    stamp: Stamp
    header: bytes
    payload: bytes


def arguments_of(record: DocumentRecord, header: str, payload: bytes) -> tuple[bytes, ...]:
    """What the writing script is given for one document.

    Raises:
        InvalidInput: a text is not valid Unicode.
    """
    num_bytes = len(header) + len(payload)
    expires_at = "" if record.expires_at is None else repr(record.expires_at)
    try:
        record.namespace.encode()
        (record.title or "").encode()
        return (
            record.id.encode(),
            repr(record.created_at).encode(),
            str(len(record.chunks)).encode(),
            str(num_bytes).encode(),
            f"{record.num_tokens} {num_bytes} {record.content_hash}".encode(),
            expires_at.encode(),
            header.encode(),
            payload,
        )
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error


def record_of(namespace: str, row: Row, fingerprint: Fingerprint | None) -> DocumentRecord:
    """
    Raises:
        CorruptRecord, ForeignRecord, StoreError: as `decode_record`.
    """
    name = _name(namespace, row.id)
    try:
        return decode_record(
            row.header.decode("ascii"),
            row.payload,
            fingerprint=fingerprint,
            version=row.stamp.version,
            created_at=row.stamp.created_at,
            name=name,
        )
    except UnicodeDecodeError as error:
        raise CorruptRecord(
            f"{name}: its header is not JSON: {error}", document_id=row.id
        ) from error
    except CorruptRecord as error:
        raise CorruptRecord(str(error), document_id=row.id) from error


def info_of(namespace: str, row: Row) -> DocumentInfo:
    """What the list shows of a document, whichever networks made its modulations.

    A list goes on over a header that is not whole, with what the stamp says.
    """
    document: dict[str, Any] = {}
    with suppress(ValueError, KeyError, TypeError):
        document = dict(json.loads(row.header)["document"])
    return DocumentInfo(
        id=row.id,
        namespace=namespace,
        title=document.get("title"),
        num_chunks=row.stamp.num_chunks,
        num_tokens=row.stamp.num_tokens,
        created_at=row.stamp.created_at,
        updated_at=document.get("updated_at", row.stamp.created_at),
        published_at=document.get("published_at"),
        expires_at=document.get("expires_at"),
        version=row.stamp.version,
        metadata=document.get("metadata", {}),
        pinned=document.get("pinned", False),
    )


def namespace_info_of(
    namespace: str, fields: Sequence[bytes | None], num_documents: int
) -> NamespaceInfo | None:
    """From `NAMESPACE_FIELDS` of its meta hash; None: never written, or deleted."""
    version, chunks, num_bytes, created_at, updated_at, deleted_at = fields
    if version is None or deleted_at is not None:
        return None
    return NamespaceInfo(
        namespace=namespace,
        num_documents=num_documents,
        num_chunks=int(chunks or 0),
        num_bytes=int(num_bytes or 0),
        bank_version=int(version),
        created_at=None if created_at is None else float(created_at),
        updated_at=None if updated_at is None else float(updated_at),
    )


def _name(namespace: str, document_id: str) -> str:
    return f"document {document_id!r} of namespace {namespace!r}"
