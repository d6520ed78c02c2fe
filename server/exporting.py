"""A stored document as a line that `POST /documents` and `mac ingest` take again."""

from __future__ import annotations

import time
from typing import Any

from mac_core.types import DocumentInfo
from server.responses import moment


def line_of(info: DocumentInfo, *, now: float | None = None) -> dict[str, Any]:
    """The document as a request body, without namespace: it can be imported under any.

    Args:
        info: with its text.
        now: seconds since the epoch; `ttl_seconds` is what is left by then.
    """
    now = time.time() if now is None else now
    line: dict[str, Any] = {"id": info.id, "text": info.text}
    if info.title is not None:
        line["title"] = info.title
    if info.metadata:
        line["metadata"] = dict(info.metadata)
    published_at = moment(info.published_at)
    if published_at is not None:
        line["published_at"] = published_at.isoformat()
    if info.expires_at is not None:
        line["ttl_seconds"] = max(0.001, info.expires_at - now)
    if info.pinned:
        line["pinned"] = True
    return line
