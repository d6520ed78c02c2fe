"""Taking a snapshot: shards and a manifest in a hidden directory, renamed when all is on disk.

Memory holds one shard at a time. A crash leaves a directory whose name begins with a dot, which
nobody reads; the next snapshot removes it. One that another process writes is locked, and stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from mac_core.errors import CorruptRecord, SnapshotExists, StoreError
from mac_core.memory.copying import RawRecord, Source
from mac_core.memory.directory_lock import lock_file
from mac_core.memory.record_format import check_record
from mac_core.memory.snapshot_manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    NamespaceEntry,
    check_snapshot_name,
)
from mac_core.types import Fingerprint, SnapshotInfo

SHARD_BYTES = 64 * 1024**2
PARTIAL = ".partial-"
LOCK = ".lock"  # in a partial directory while it is written, and in its parent

Advance = Callable[[int], None]


def write_snapshot(
    source: Source, parent: Path, name: str, *, advance: Advance = lambda amount: None
) -> SnapshotInfo:
    """Copy every namespace into `parent / name`, each at one version of it, while writes go on.

    Args:
        advance: told how many more documents were copied.

    Raises:
        InvalidInput: no name for a snapshot.
        SnapshotExists: the name is taken, if only by one that is being written.
        StoreError: the store cannot be read, or the disk not be written; nothing is left there.
    """
    check_snapshot_name(name)
    if (parent / name).exists():
        raise SnapshotExists(f"there is a snapshot {name!r} in {parent}")
    partial = parent / f"{PARTIAL}{name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _begin(partial):
            try:
                manifest = _Writing(source, partial, advance).run()
                os.rename(partial, parent / name)
                (parent / name / LOCK).unlink(missing_ok=True)
                _sync(parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise StoreError(f"snapshot {name!r} could not be written: {error}") from error
    return manifest.info(name)


def _begin(partial: Path) -> TextIO:
    """Make the directory, locked until what is returned is closed, and remove dead ones beside it.

    Raises:
        SnapshotExists: another process writes it.
        OSError: the disk refuses.
    """
    # Without the parent's lock it could be taken for a dead one before it has its own.
    with lock_file(partial.parent / LOCK, is_waiting=True):
        _remove_dead(partial.parent)
        try:
            partial.mkdir()
        except FileExistsError:
            name = partial.name.removeprefix(PARTIAL)
            raise SnapshotExists(f"snapshot {name!r} is being written by another process") from None
        return lock_file(partial / LOCK)


def _remove_dead(parent: Path) -> None:
    for partial in parent.glob(f"{PARTIAL}*"):
        # Locked: it is being written. Not found: it has got its name since.
        with suppress(BlockingIOError, FileNotFoundError), lock_file(partial / LOCK):
            shutil.rmtree(partial)


class Place(NamedTuple):
    """Where a record is among its namespace's shards."""

    shard: int
    row: int
    version: int
    created_at: float
    num_bytes: int

    def to_index(self) -> dict[str, int | float]:
        values: dict[str, int | float] = self._asdict()
        return {name: value for name, value in values.items() if name != "num_bytes"}


class _Shards:
    """Fills one shard after the other; what is superseded stays in and is named by no index."""

    def __init__(self, name: Callable[[int], str], write: Callable[[str, bytes], None]) -> None:
        self.names: list[str] = []
        self._name = name
        self._write = write
        self._waiting: dict[str, NDArray[np.uint8]] = {}
        self._num_bytes = 0

    def add(self, record: RawRecord) -> Place:
        header = record.header.encode()
        row, size = len(self._waiting) // 2, len(header) + len(record.payload)
        place = Place(len(self.names), row, record.version, record.created_at, size)
        self._waiting[f"{row}.header"] = np.frombuffer(header, dtype=np.uint8)
        self._waiting[f"{row}.payload"] = np.frombuffer(record.payload, dtype=np.uint8)
        self._num_bytes += size
        if self._num_bytes >= SHARD_BYTES:
            self.flush()
        return place

    def flush(self) -> None:
        if self._waiting:
            name = self._name(len(self.names))
            self._write(name, save(self._waiting))
            self.names.append(name)
            self._waiting, self._num_bytes = {}, 0


class _Writing:
    """One snapshot while it is written."""

    def __init__(self, source: Source, directory: Path, advance: Advance) -> None:
        self._source = source
        self._directory = directory
        self._advance = advance
        self._files: dict[str, FileEntry] = {}
        self._fingerprints: dict[Fingerprint, None] = {}
        self._left_out: list[tuple[str, str]] = []

    def run(self) -> Manifest:
        created_at = time.time()
        infos = self._source.namespaces()
        entries = [self._namespace(number, info.namespace) for number, info in enumerate(infos)]
        manifest = Manifest(
            created_at=created_at,
            store=self._source.kind,
            fingerprints=tuple(self._fingerprints),
            namespaces=tuple(entries),
            left_out=tuple(self._left_out),
            files=self._files,
        )
        _write_durably(self._directory / MANIFEST, manifest.to_json().encode())
        _sync(self._directory)
        return manifest

    def _namespace(self, number: int, namespace: str) -> NamespaceEntry:
        shards = _Shards(lambda count: f"shard-{number:05}-{count:05}.safetensors", self._write)
        places: dict[str, Place | None] = {}  # None: corrupt

        def keep(record: RawRecord) -> None:
            is_whole = self._is_whole(namespace, record)
            places[record.id] = shards.add(record) if is_whole else None
            self._advance(1)

        copied = self._source.copy(namespace, keep)
        shards.flush()
        kept = [(name, place) for name in copied.ids if (place := places[name]) is not None]
        self._left_out += [(namespace, name) for name in copied.ids if places[name] is None]
        index = f"documents-{number:05}.jsonl"
        lines = [json.dumps({"id": name} | place.to_index()) + "\n" for name, place in kept]
        self._write(index, "".join(lines).encode())
        return NamespaceEntry(
            namespace=namespace,
            version=copied.version,
            num_documents=len(kept),
            num_bytes=sum(place.num_bytes for _, place in kept),
            index=index,
            shards=tuple(shards.names),
        )

    def _is_whole(self, namespace: str, record: RawRecord) -> bool:
        name = f"document {record.id!r} of namespace {namespace!r}"
        try:
            self._fingerprints[check_record(record.header, record.payload, name=name)] = None
        except CorruptRecord:
            return False
        return True

    def _write(self, name: str, content: bytes) -> None:
        _write_durably(self._directory / name, content)
        self._files[name] = FileEntry(
            num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
