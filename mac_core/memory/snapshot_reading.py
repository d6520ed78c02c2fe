"""Reading snapshots: listed, verified, and their documents as records for a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mac_core.errors import (
    CorruptRecord,
    CorruptSnapshot,
    ForeignSnapshot,
    SnapshotError,
    SnapshotNotFound,
    StoreError,
)
from mac_core.memory.record_format import decode_record
from mac_core.memory.records import DocumentRecord
from mac_core.memory.restoring import NamespaceContent
from mac_core.memory.snapshot_manifest import (
    MANIFEST,
    Manifest,
    NamespaceEntry,
    check_file,
    check_snapshot_name,
    read_manifest,
)
from mac_core.types import Fingerprint, SnapshotInfo

Advance = Callable[[int], None]


def list_snapshots(parent: Path) -> list[SnapshotInfo]:
    """Those whose manifest can be read, oldest first; a directory that is none is left out."""
    found = []
    for manifest in parent.glob(f"[!.]*/{MANIFEST}"):
        try:
            found.append(read_manifest(manifest.parent).info(manifest.parent.name))
        except SnapshotError:  # `verify` says what is wrong with it
            continue
    return sorted(found, key=lambda info: (info.created_at, info.name))


def delete_snapshot(parent: Path, name: str) -> None:
    """
    Raises:
        SnapshotNotFound: there is none.
        StoreError: the disk refuses.
    """
    check_snapshot_name(name)
    if not (parent / name / MANIFEST).is_file():
        raise SnapshotNotFound(f"snapshot {name!r}: no {MANIFEST} in {parent}")
    try:
        (parent / name / MANIFEST).unlink()  # first: what is left is no snapshot
        shutil.rmtree(parent / name)
    except OSError as error:
        raise StoreError(f"snapshot {name!r} could not be deleted: {error}") from error


class Snapshot:
    """One snapshot on disk; made for reading, and believed once `verify` has returned."""

    def __init__(self, parent: Path, name: str) -> None:
        """
        Raises:
            InvalidInput, SnapshotNotFound, SnapshotTooNew, CorruptSnapshot: what is wrong with it.
        """
        check_snapshot_name(name)
        self._directory = parent / name
        self._manifest: Manifest = read_manifest(self._directory)

    @property
    def info(self) -> SnapshotInfo:
        return self._manifest.info(self._directory.name)

    def verify(self, *, advance: Advance = lambda amount: None) -> SnapshotInfo:
        """Compare every file with its checksum.

        Args:
            advance: told how many more bytes are done.

        Raises:
            CorruptSnapshot: which file is not what was written.
        """
        named = {
            name for entry in self._manifest.namespaces for name in (entry.index, *entry.shards)
        }
        if unknown := named - self._manifest.files.keys():
            raise CorruptSnapshot(f"{self._name}: no checksum of {sorted(unknown)[0]}")
        for name, entry in self._manifest.files.items():
            check_file(self._directory / name, entry)
            advance(entry.num_bytes)
        return self.info

    def check_fingerprint(self, fingerprint: Fingerprint) -> None:
        """
        Raises:
            ForeignSnapshot: other networks made the modulations, and what to do then.
        """
        for found in self._manifest.fingerprints:
            if found != fingerprint:
                raise ForeignSnapshot(
                    f"{self._name} was made with amortization_hash {found.amortization_hash} and "
                    f"base_lm_hash {found.base_lm_hash}, the model here has "
                    f"{fingerprint.amortization_hash} and {fingerprint.base_lm_hash}; restore it "
                    "with `mac snapshot restore --as-is`, then run `mac bank reindex` to make its "
                    "modulations anew from the stored texts"
                )

    def contents(
        self,
        fingerprint: Fingerprint | None,
        *,
        namespaces: Sequence[str] | None = None,
        advance: Advance = lambda amount: None,
    ) -> list[NamespaceContent]:
        """What to give `Store.restore`; the records are read when they are asked for.

        Args:
            fingerprint: the networks that will read them; None: any.
            namespaces: only these; None: all.
            advance: told how many more documents were read.

        Raises:
            SnapshotNotFound: it has no such namespace.
        """
        entries = {entry.namespace: entry for entry in self._manifest.namespaces}
        for namespace in namespaces or ():
            if namespace not in entries:
                raise SnapshotNotFound(f"{self._name} has no namespace {namespace!r}")
        return [
            NamespaceContent(
                namespace=entry.namespace,
                version=entry.version,
                num_documents=entry.num_documents,
                records=self._records(entry, fingerprint, advance),
            )
            for entry in entries.values()
            if namespaces is None or entry.namespace in namespaces
        ]

    def _records(
        self, entry: NamespaceEntry, fingerprint: Fingerprint | None, advance: Advance
    ) -> Iterator[DocumentRecord]:
        """
        Raises:
            CorruptSnapshot: a file was changed since it was verified.
        """
        shards: dict[int, Any] = {}
        try:
            with (self._directory / entry.index).open(encoding="utf-8") as lines:
                for line in lines:
                    yield self._record(entry, json.loads(line), shards, fingerprint)
                    advance(1)
        except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
            raise CorruptSnapshot(f"{self._name}: {error}") from error
        except CorruptRecord as error:
            raise CorruptSnapshot(f"{self._name}: {error}") from error

    def _record(
        self,
        entry: NamespaceEntry,
        place: dict[str, Any],
        shards: dict[int, Any],
        fingerprint: Fingerprint | None,
    ) -> DocumentRecord:
        number, row = place["shard"], place["row"]
        if number not in shards:
            shards.clear()  # documents stand in the order of the shards, but for a few
            path = self._directory / entry.shards[number]
            shards[number] = safe_open(path, framework="numpy")
        shard = shards[number]
        return decode_record(
            shard.get_tensor(f"{row}.header").tobytes().decode(),
            shard.get_tensor(f"{row}.payload").tobytes(),
            fingerprint=fingerprint,
            version=place["version"],
            created_at=place["created_at"],
            name=f"document {place['id']!r} of namespace {entry.namespace!r}",
        )

    @property
    def _name(self) -> str:
        return f"snapshot {self._directory.name!r}"
