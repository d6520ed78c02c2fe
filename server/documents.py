"""From a validated body to the engine's document."""

from __future__ import annotations

from mac_core.types import Document
from server.schemas import DocumentBody


def document_of(body: DocumentBody) -> Document:
    return Document(
        text=body.text,
        id=body.id,
        title=body.title,
        metadata=body.metadata,
        published_at=body.published_at.timestamp() if body.published_at else None,
        ttl_s=body.ttl_seconds,
        on_conflict=body.on_conflict,
        pinned=body.pinned,
    )
