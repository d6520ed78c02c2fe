"""Snapshots of a serving engine: taken beside the engine thread, restored on it.

One at a time, but for lists, which wait for none. Reading and checking files happens on a thread
of its own; only what a restore writes takes a turn of the engine thread, in order with the
documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import Protocol, TypeVar

from mac_core.engine.intake import as_store_error
from mac_core.engine.learning import engine_failed
from mac_core.engine.serving import Serving
from mac_core.errors import Overloaded, StoreError
from mac_core.memory.restoring import NamespaceContent
from mac_core.memory.snapshot_reading import Snapshot, delete_snapshot, list_snapshots
from mac_core.memory.snapshot_writing import write_snapshot
from mac_core.types import RestoreResult, SnapshotInfo

T = TypeVar("T")

MAX_CALLS = 64  # at once, the one whose turn it is among them; and as many lists
RETRY_AFTER_S = 5.0


class Submit(Protocol):
    """Runs a function on the engine thread; raises NotReady when that takes no work."""

    def __call__(self, work: Callable[[Serving], T], /) -> Future[T]: ...


class Snapshots:
    """The snapshots in one directory. Any thread; nothing here blocks.

    Every call returns a future at once, or refuses at once with Overloaded.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read: Submit,
        write: Submit,
    ) -> None:
        """`read`: ahead of what is queued; `write`: in order with the documents."""
        self._directory = directory
        self._read = read
        self._write = write
        self._one_at_a_time = Lock()
        self._room = BoundedSemaphore(MAX_CALLS)
        self._list_room = BoundedSemaphore(MAX_CALLS)

    def create(self, name: str | None) -> Future[SnapshotInfo]:
        """Copy every namespace; without a name, it is the time in UTC."""

        def work() -> SnapshotInfo:
            source = self._read(lambda serving: serving.store.source()).result()
            with closing(source):
                return write_snapshot(source, self._directory, name or default_name())

        return self._in_turn(work)

    def list(self) -> Future[list[SnapshotInfo]]:
        """Those that can be read, oldest first; one that is being written is not among them."""
        return _in_background(
            lambda: list_snapshots(self._directory), room=self._list_room, turn=nullcontext()
        )

    def verify(self, name: str) -> Future[SnapshotInfo]:
        """Compare every file with its checksum; CorruptSnapshot through the future."""
        return self._in_turn(lambda: Snapshot(self._directory, name).verify())

    def delete(self, name: str) -> Future[None]:
        return self._in_turn(lambda: delete_snapshot(self._directory, name))

    def restore(
        self, name: str, *, namespaces: Sequence[str] | None, is_replacing: bool
    ) -> Future[RestoreResult]:
        """Verify, then put the namespaces in place of what is there: all of them or none."""

        def work() -> RestoreResult:
            snapshot = Snapshot(self._directory, name)
            fingerprint = self._read(lambda serving: serving.model.fingerprint).result()
            snapshot.check_fingerprint(fingerprint)
            snapshot.verify()
            contents = snapshot.contents(fingerprint, namespaces=namespaces)
            return self._write(
                lambda serving: put_in_place(serving, contents, is_replacing=is_replacing)
            ).result()

        return self._in_turn(work)

    def _in_turn(self, work: Callable[[], T]) -> Future[T]:
        return _in_background(work, room=self._room, turn=self._one_at_a_time)


def _in_background(
    work: Callable[[], T], *, room: BoundedSemaphore, turn: AbstractContextManager[object]
) -> Future[T]:
    """Run `work` on a thread of its own, in its `turn`.

    Raises:
        Overloaded: there is no `room` for another thread.
    """
    if not room.acquire(blocking=False):
        raise Overloaded(lane="snapshots", max_queued=MAX_CALLS, retry_after_s=RETRY_AFTER_S)
    future: Future[T] = Future()

    def run() -> None:
        try:
            with turn:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(engine_failed(error, doing="the snapshot"))
        finally:
            room.release()

    # A daemon: what it leaves when the process ends is not seen, and the next one removes it.
    thread = Thread(target=run, name="mac-snapshot", daemon=True)
    try:
        thread.start()
    except BaseException:
        room.release()
        raise
    return future


def put_in_place(
    serving: Serving, contents: Sequence[NamespaceContent], *, is_replacing: bool
) -> RestoreResult:
    """Write and publish restored namespaces. Engine thread only.

    Raises:
        NamespaceNotEmpty, CorruptSnapshot, StoreError: nothing was changed.
    """
    try:
        versions = serving.store.restore(contents, is_replacing=is_replacing)
    except Exception as error:
        raise as_store_error(error) from error
    for namespace in versions:
        with suppress(StoreError):  # it is restored; the bank gets there with the follower
            serving.mirror.reload(namespace)
    return RestoreResult(
        bank_versions=versions,
        num_documents=sum(content.num_documents for content in contents),
    )


def default_name() -> str:
    """Of a snapshot that is taken now."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
