"""Work on a store without a server: snapshots, export, verification. No network is loaded.

The SQLite store of a running server can be read, but is only its server's to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mac_core.engine.snapshots import default_name
from mac_core.errors import CorruptRecord, NamespaceNotFound, SnapshotError
from mac_core.memory.codebook_records import is_own_id
from mac_core.memory.copying import RawRecord
from mac_core.memory.opening import open_source, open_store
from mac_core.memory.record_format import check_record, decode_record
from mac_core.memory.snapshot_reading import Snapshot, delete_snapshot, list_snapshots
from mac_core.memory.snapshot_writing import write_snapshot
from mac_core.types import DocumentInfo, Fingerprint, RestoreResult, SnapshotInfo

__all__ = [
    "Advance",
    "BankCheck",
    "bundle_fingerprint",
    "count_documents",
    "create_snapshot",
    "delete_snapshot",
    "export_documents",
    "list_snapshots",
    "restore_snapshot",
    "verify_bank",
    "verify_snapshot",
]

Advance = Callable[[int], None]
NOBODY = Fingerprint(amortization_hash="", base_lm_hash="")  # of a snapshot without a record


def nothing(amount: int) -> None:
    """For whoever shows no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankCheck:
    """What reading every record of a store has found."""

    num_documents: int
    fingerprints: tuple[Fingerprint, ...]
    corrupt: tuple[str, ...]  # what is wrong with each; names namespace and id


def bundle_fingerprint(bundle: Path) -> Fingerprint:
    """Of the networks in a bundle, from its manifest alone.

    Raises:
        CheckpointError: it is none.
    """
    from mac_core.networks.manifest import read_manifest  # here: torch is for a bundle alone

    manifest = read_manifest(bundle)
    return Fingerprint(
        amortization_hash=manifest["amortization_hash"], base_lm_hash=manifest["base_lm_hash"]
    )


def count_documents(store_url: str) -> int:
    """In all namespaces; for a progress bar. Raises StoreError."""
    with closing(open_source(store_url)) as source:
        return sum(info.num_documents for info in source.namespaces())


def create_snapshot(
    store_url: str, directory: Path, name: str | None = None, *, advance: Advance = nothing
) -> SnapshotInfo:
    """Copy every namespace into `directory`. Raises as `write_snapshot`."""
    with closing(open_source(store_url)) as source:
        return write_snapshot(source, directory, name or default_name(), advance=advance)


def verify_snapshot(directory: Path, name: str, *, advance: Advance = nothing) -> SnapshotInfo:
    """Compare every file with its checksum. Raises SnapshotError."""
    return Snapshot(directory, name).verify(advance=advance)


def restore_snapshot(
    store_url: str,
    directory: Path,
    name: str,
    *,
    fingerprint: Fingerprint | None,
    namespaces: Sequence[str] | None = None,
    is_replacing: bool = False,
    advance: Advance = nothing,
) -> RestoreResult:
    """Verify, then put the namespaces in place: all of them, or none.

    Args:
        fingerprint: of the bundle that will read them; None: whatever networks made them.

    Raises:
        SnapshotError: it is not whole, is another bundle's or several ones', or would replace
            documents.
        StoreError: the store cannot be written, or is in use by a server.
    """
    snapshot = Snapshot(directory, name)
    made_by = snapshot.info.fingerprints
    if fingerprint is not None:
        snapshot.check_fingerprint(fingerprint)
    elif len(made_by) > 1:  # a store writes as one: the others' modulations would pass for its own
        raise SnapshotError(
            f"snapshot {name!r} holds what {len(made_by)} bundles made: its bank was being "
            "re-indexed; finish that (`mac bank reindex`) and take another"
        )
    snapshot.verify()
    contents = snapshot.contents(fingerprint, namespaces=namespaces, advance=advance)
    own = fingerprint or next(iter(made_by), None) or NOBODY
    with closing(open_store(store_url, fingerprint=own)) as store:
        versions = store.restore(contents, is_replacing=is_replacing)
    return RestoreResult(
        bank_versions=versions,
        num_documents=sum(content.num_documents for content in contents),
    )


def export_documents(
    store_url: str, namespace: str, *, skip: Callable[[CorruptRecord], None]
) -> Iterator[DocumentInfo]:
    """Every document with its text, in order of writing, at one version.

    The texts are in memory until all are read.

    Args:
        skip: told of each corrupt record, which is left out.

    Raises:
        NamespaceNotFound: there is none of this name.
        StoreError: the store cannot be read.
    """
    with closing(open_source(store_url)) as source:
        if namespace not in {info.namespace for info in source.namespaces()}:
            raise NamespaceNotFound(namespace=namespace)
        found: dict[str, DocumentInfo | CorruptRecord] = {}

        def keep(record: RawRecord) -> None:
            try:
                found[record.id] = _info(namespace, record)
            except CorruptRecord as error:
                found[record.id] = error

        copied = source.copy(namespace, keep)
    for name in copied.ids:
        one = found[name]
        if isinstance(one, CorruptRecord):
            skip(one)
        elif not is_own_id(name):
            yield one


def verify_bank(store_url: str, *, advance: Advance = nothing) -> BankCheck:
    """Compare every record with its checksums. Raises StoreError."""
    corrupt: dict[tuple[str, str], str] = {}
    fingerprints: dict[Fingerprint, None] = {}
    num_documents = 0
    with closing(open_source(store_url)) as source:
        for info in source.namespaces():
            namespace = info.namespace

            def keep(record: RawRecord, namespace: str = namespace) -> None:
                corrupt.pop((namespace, record.id), None)
                try:
                    made_by = check_record(
                        record.header, record.payload, name=_name(namespace, record.id)
                    )
                    fingerprints[made_by] = None
                except CorruptRecord as error:
                    corrupt[namespace, record.id] = str(error)
                advance(1)

            num_documents += len(source.copy(namespace, keep).ids)
    return BankCheck(
        num_documents=num_documents,
        fingerprints=tuple(fingerprints),
        corrupt=tuple(corrupt.values()),
    )


def _info(namespace: str, record: RawRecord) -> DocumentInfo:
    return decode_record(
        record.header,
        record.payload,
        fingerprint=None,
        version=record.version,
        created_at=record.created_at,
        name=_name(namespace, record.id),
    ).info(with_text=True)


def _name(namespace: str, document_id: str) -> str:
    return f"document {document_id!r} of namespace {namespace!r}"
