"""A stored document as a value: its ids, hashes and parts. Its bytes: `record_format`."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mac_core.errors import InvalidInput
from mac_core.memory.chunking import Chunk
from mac_core.memory.codebook import Codebook
from mac_core.memory.quantization import StoredModulation, pack
from mac_core.types import Document, DocumentInfo, MetadataValue

__all__ = [
    "DocumentRecord",
    "StoredChunk",
    "StoredModulation",
    "canonical_json",
    "content_hash",
    "document_id",
    "last_of_each_id",
    "metadata_matches",
    "pack",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredChunk:
    """One chunk and what the amortization network made of it."""

    chunk: Chunk
    stored: StoredModulation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentRecord:
    """A document as the store keeps it.

    The store assigns `version`, and keeps the first `created_at` when a document is updated.
    """

    id: str
    namespace: str
    title: str | None
    text: str
    metadata: Mapping[str, MetadataValue]
    published_at: float | None  # seconds since the epoch, as all times here
    expires_at: float | None
    created_at: float
    updated_at: float
    content_hash: str
    num_tokens: int
    chunks: tuple[StoredChunk, ...]
    version: int = 0  # the namespace's version that wrote it; 0: not written yet
    pinned: bool = False  # never removed to make room
    codebook: Codebook | None = None  # of the bank's own records: what other records' slots need

    @property
    def num_bytes(self) -> int:
        """Of the modulations; text and header come on top where it is stored."""
        return sum(part.stored.num_bytes for part in self.chunks)

    def info(self, *, with_text: bool = False) -> DocumentInfo:
        """What the list shows of it."""
        return DocumentInfo(
            id=self.id,
            namespace=self.namespace,
            title=self.title,
            num_chunks=len(self.chunks),
            num_tokens=self.num_tokens,
            created_at=self.created_at,
            updated_at=self.updated_at,
            published_at=self.published_at,
            expires_at=self.expires_at,
            version=self.version,
            metadata=self.metadata,
            text=self.text if with_text else None,
            pinned=self.pinned,
        )


def document_id(namespace: str, text: str) -> str:
    """The id of a document that came without one: a hash of namespace and normalised text.

    Raises:
        InvalidInput: the text is not valid Unicode.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(_utf8(json.dumps([namespace]) + normalised)).hexdigest()[:32]


def content_hash(document: Document) -> str:
    """Hash of everything whose change makes a document `updated`: sha256, hex.

    What is not pinned has the hash that it had before documents could be.

    Raises:
        InvalidInput: the text is not valid Unicode or the metadata not valid JSON.
    """
    rest = [document.title, document.metadata, document.published_at, document.ttl_s]
    rest += [True] if document.pinned else []
    return hashlib.sha256(_utf8(canonical_json(rest) + "\n" + document.text)).hexdigest()


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, ASCII, no NaN.

    Raises:
        InvalidInput: the value has no JSON form.
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"not representable as JSON: {error}") from error


def last_of_each_id(records: Sequence[DocumentRecord]) -> list[DocumentRecord]:
    """The records that stay when all are written one after the other, in that order."""
    latest: dict[str, DocumentRecord] = {}
    for record in records:
        latest.pop(record.id, None)
        latest[record.id] = record
    return list(latest.values())


def metadata_matches(
    metadata: Mapping[str, MetadataValue], wanted: Mapping[str, MetadataValue]
) -> bool:
    """Whether every wanted key is there with the wanted value.

    `1` equals `1.0`; `True` equals neither. An absent key matches nothing, not even None.
    """
    return all(
        key in metadata
        and isinstance(metadata[key], bool) == isinstance(value, bool)
        and metadata[key] == value
        for key, value in wanted.items()
    )


def _plain(value: object) -> Any:
    """Mappings as dicts, two levels deep: that is as deep as a document goes."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error
