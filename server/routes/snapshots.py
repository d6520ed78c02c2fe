"""`/snapshots`: the bank on disk, taken while it is written to, and put back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BaseModel, Field

from mac_core.types import RestoreResult, SnapshotInfo
from server.dependencies import EngineDependency, outcome, require_json
from server.responses import moment
from server.schemas import Body as StrictBody
from server.schemas import Namespace, NoQuery

router = APIRouter(tags=["snapshots"])

SnapshotName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Name = Annotated[SnapshotName, Path()]
Nothing = Annotated[NoQuery, Query()]


class SnapshotBody(StrictBody):
    """A snapshot to take."""

    name: SnapshotName | None = Field(default=None, description="the time in UTC when not given")


class RestoreBody(StrictBody):
    """What to put back, and over what."""

    namespaces: list[Namespace] | None = Field(
        default=None, min_length=1, max_length=1000, description="all of them when not given"
    )
    replace: bool = Field(default=False, description="namespaces may hold documents, which go")


class SnapshotNamespaceSummary(BaseModel):
    """One namespace at the version that was copied."""

    namespace: str
    documents: int
    bytes: int
    bank_version: int


class LeftOut(BaseModel):
    """A record that was corrupt in the store already."""

    namespace: str
    id: str


class SnapshotSummary(BaseModel):
    """What a snapshot holds, as its manifest says."""

    name: str
    format_version: int
    created_at: datetime | None
    store: str = Field(description="kind of the store that it was taken of")
    amortization_hashes: list[str] = Field(description="of the networks that made its modulations")
    namespaces: list[SnapshotNamespaceSummary]
    left_out: list[LeftOut]
    bytes: int

    @classmethod
    def of(cls, info: SnapshotInfo) -> Self:
        return cls(
            name=info.name,
            format_version=info.format_version,
            created_at=moment(info.created_at),
            store=info.store,
            amortization_hashes=[found.amortization_hash for found in info.fingerprints],
            namespaces=[
                SnapshotNamespaceSummary(
                    namespace=found.namespace,
                    documents=found.num_documents,
                    bytes=found.num_bytes,
                    bank_version=found.version,
                )
                for found in info.namespaces
            ],
            left_out=[LeftOut(namespace=where, id=name) for where, name in info.left_out],
            bytes=info.num_bytes,
        )


class SnapshotList(BaseModel):
    """Oldest first."""

    snapshots: list[SnapshotSummary]


class SnapshotRestored(BaseModel):
    """Every namespace is in place; answers at or after its version rest on it."""

    documents: int
    bank_versions: dict[str, int]

    @classmethod
    def of(cls, result: RestoreResult) -> Self:
        return cls(documents=result.num_documents, bank_versions=dict(result.bank_versions))


class SnapshotRemoved(BaseModel):
    """The snapshot is gone; the bank is as it was."""

    name: str
    removed: bool = True


@router.post("/snapshots", dependencies=[Depends(require_json)], status_code=201)
async def post_snapshots(
    body: Annotated[SnapshotBody, Body()], _query: Nothing, engine: EngineDependency
) -> SnapshotSummary:
    """Copy every namespace, each at one version of it, while questions and writes go on.

    When it answers, the snapshot is on the server's disk, in `MAC_SNAPSHOT_DIR`.
    """
    return SnapshotSummary.of(await outcome(engine.snapshots.create(body.name)))


@router.get("/snapshots")
async def get_snapshots(_query: Nothing, engine: EngineDependency) -> SnapshotList:
    """List the snapshots on this server's disk."""
    found = await outcome(engine.snapshots.list())
    return SnapshotList(snapshots=[SnapshotSummary.of(info) for info in found])


@router.post("/snapshots/{name}/verify")
async def post_verify(name: Name, _query: Nothing, engine: EngineDependency) -> SnapshotSummary:
    """Compare every file with its checksum; 409 `corrupt_snapshot` names one that differs."""
    return SnapshotSummary.of(await outcome(engine.snapshots.verify(name)))


@router.post("/snapshots/{name}/restore", dependencies=[Depends(require_json)])
async def post_restore(
    name: Name,
    body: Annotated[RestoreBody, Body()],
    _query: Nothing,
    engine: EngineDependency,
) -> SnapshotRestored:
    """Put namespaces back as they were: all that are named, in one write, or none.

    Their versions go on behind those of both histories. Questions wait while it is read in.
    """
    result = await outcome(
        engine.snapshots.restore(name, namespaces=body.namespaces, is_replacing=body.replace)
    )
    return SnapshotRestored.of(result)


@router.delete("/snapshots/{name}")
async def delete_snapshot(name: Name, _query: Nothing, engine: EngineDependency) -> SnapshotRemoved:
    """Delete a snapshot from the disk."""
    await outcome(engine.snapshots.delete(name))
    return SnapshotRemoved(name=name)
