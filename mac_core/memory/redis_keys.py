"""The Redis store's keys: all of one namespace share a hash tag, and so one slot of a cluster.

Nothing is ever found by listing keys: `NAMESPACES` names the namespaces, each namespace's own
sorted set its documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from mac_core.errors import InvalidInput

SCHEMA_VERSION = 1
SCHEMA = "{mac}:schema"
CHECK = "{mac}:check"  # written by whoever asks whether writing is possible
NAMESPACES = "{mac}:namespaces"  # set; a namespace is here before its first write
ANNOUNCEMENTS = "{mac}:announcements"  # stream: one entry when a namespace is new


@dataclass(frozen=True, slots=True)
class NamespaceKeys:
    """Where one namespace's parts are. The id of a document is a field or member, never a key."""

    meta: str  # hash: version, mark of the last write, last position, sums over documents
    order: str  # sorted set: id by position
    stamps: str  # hash: id -> `redis_rows.Stamp`
    headers: str  # hash: id -> the record's header
    payloads: str  # hash: id -> the record's payload
    expiry: str  # sorted set: id by expires_at
    changes: str  # stream: one entry for each version, whose id is `VERSION-0`

    @classmethod
    def of(cls, namespace: str) -> NamespaceKeys:
        """
        Raises:
            InvalidInput: the name is not valid Unicode.
        """
        prefix = f"mac:{{{_quoted(namespace)}}}"
        return cls(
            *(f"{prefix}:{name}" for name in ("meta", "order", "stamps", "headers", "payloads")),
            *(f"{prefix}:{name}" for name in ("expiry", "changes")),
        )

    def writer(self, writer: str) -> str:
        """What the last write of one store object came to; see `redis_scripts`."""
        return f"{self.meta.removesuffix('meta')}writer:{writer}"


def _quoted(namespace: str) -> str:
    """ASCII without braces, which would end the hash tag."""
    try:
        return quote(namespace, safe="")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error
