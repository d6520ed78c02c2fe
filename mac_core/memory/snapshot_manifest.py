"""A snapshot's manifest: what is in it, of which networks, and every file's checksum.

The format is described in deploy/docs/snapshot-format.md; a newer one is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mac_core.errors import CorruptSnapshot, InvalidInput, SnapshotNotFound, SnapshotTooNew
from mac_core.memory.records import canonical_json
from mac_core.types import Fingerprint, SnapshotInfo, SnapshotNamespace

FORMAT = "mac-server snapshot"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the snapshot, as it was written."""

    num_bytes: int
    sha256: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceEntry:
    """One namespace and where its documents are."""

    namespace: str
    version: int
    num_documents: int
    num_bytes: int
    index: str  # file: one line for each document, in order of writing
    shards: tuple[str, ...]  # files, by the number that the index gives

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        names = {field.name for field in fields(cls)}
        values = {name: value for name, value in values.items() if name in names}
        return cls(**values | {"shards": tuple(values["shards"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a snapshot but the documents."""

    created_at: float  # seconds since the epoch
    store: str
    fingerprints: tuple[Fingerprint, ...]
    namespaces: tuple[NamespaceEntry, ...]
    left_out: tuple[tuple[str, str], ...]
    files: dict[str, FileEntry]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        values = {"format": FORMAT} | asdict(self)
        return json.dumps(values | {"manifest_sha256": _hash(values)}, indent=1)

    def info(self, name: str) -> SnapshotInfo:
        return SnapshotInfo(
            name=name,
            format_version=self.format_version,
            created_at=self.created_at,
            store=self.store,
            fingerprints=self.fingerprints,
            namespaces=tuple(
                SnapshotNamespace(
                    namespace=entry.namespace,
                    version=entry.version,
                    num_documents=entry.num_documents,
                    num_bytes=entry.num_bytes,
                )
                for entry in self.namespaces
            ),
            left_out=self.left_out,
            num_bytes=sum(entry.num_bytes for entry in self.files.values()),
        )


def check_snapshot_name(name: str) -> None:
    """
    Raises:
        InvalidInput: no name for one.
    """
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is no name for a snapshot: expected {NAME.pattern}")


def read_manifest(directory: Path) -> Manifest:
    """The manifest in `directory`, its own checksum verified.

    Raises:
        SnapshotNotFound: there is none.
        SnapshotTooNew: of a format that this version does not know.
        CorruptSnapshot: it does not parse or fails its checksum.
    """
    name = f"snapshot {directory.name!r}"
    try:
        values = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SnapshotNotFound(f"{name}: no {MANIFEST} in {directory.parent}") from error
    except (OSError, ValueError) as error:
        raise CorruptSnapshot(f"{name}: its manifest cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CorruptSnapshot(f"{name}: its {MANIFEST} is not that of a snapshot")
    version = values.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CorruptSnapshot(f"{name}: format version {version!r} is none")
    if version > FORMAT_VERSION:  # before the checksum, which another format may make otherwise
        raise SnapshotTooNew(
            f"{name} is of format version {version}, written by a newer version; "
            f"this one reads up to {FORMAT_VERSION}"
        )
    if values.pop("manifest_sha256", None) != _hash(values):
        raise CorruptSnapshot(f"{name}: its manifest fails its checksum")
    try:
        return _parse(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptSnapshot(f"{name}: its manifest is not whole: {error}") from error


def check_file(path: Path, entry: FileEntry) -> None:
    """
    Raises:
        CorruptSnapshot: the file is not what was written.
    """
    what = f"snapshot {path.parent.name!r}: {path.name}"
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size != entry.num_bytes:
            raise CorruptSnapshot(f"{what} has {size} bytes, {entry.num_bytes} were written")
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise CorruptSnapshot(f"{what} cannot be read: {error}") from error
    if digest.hexdigest() != entry.sha256:
        raise CorruptSnapshot(f"{what} fails its checksum")


def _parse(values: dict[str, Any]) -> Manifest:
    for name in values["files"]:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not the name of a file in it")
    return Manifest(
        created_at=float(values["created_at"]),
        store=str(values["store"]),
        fingerprints=tuple(Fingerprint(**item) for item in values["fingerprints"]),
        namespaces=tuple(NamespaceEntry.parse(item) for item in values["namespaces"]),
        left_out=tuple((namespace, name) for namespace, name in values["left_out"]),
        files={name: FileEntry(**entry) for name, entry in values["files"].items()},
        format_version=values["format_version"],
    )


def _hash(values: dict[str, Any]) -> str:
    # Through JSON and back: a tuple and a list are the same list there.
    return hashlib.sha256(canonical_json(json.loads(json.dumps(values))).encode()).hexdigest()
