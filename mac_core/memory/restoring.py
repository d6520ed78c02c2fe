"""What a store is given to put namespaces back as they were: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mac_core.memory.records import DocumentRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamespaceContent:
    """One namespace; `records` may be read once."""

    namespace: str
    version: int  # that it had; it will have a later one
    num_documents: int
    records: Iterable[DocumentRecord]  # in order of writing


def version_after(present: int, restored: int) -> int:
    """The version of a restored namespace: behind every one that either history has given."""
    return max(present, restored) + 1
