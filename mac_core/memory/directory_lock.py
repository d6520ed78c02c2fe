"""Advisory locks that the kernel drops with their owner: one process per store directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from mac_core.errors import StoreError

LOCK_FILE = "bank.lock"


def lock_file(path: Path, *, is_waiting: bool = False) -> TextIO:
    """Open a file, made when missing, and lock it until it is closed or the process ends.

    Args:
        is_waiting: for whoever holds it, without a bound.

    Raises:
        BlockingIOError: another holds it.
        OSError: it cannot be opened or locked.
    """
    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if is_waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


class DirectoryLock:
    """Hold `directory`, created when missing, until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """Take the lock at once or not at all.

        Raises:
            StoreError: another store holds it, or the directory cannot be used.
        """
        path = directory / LOCK_FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = lock_file(path)
        except BlockingIOError as error:
            owner = path.read_text(encoding="ascii").strip() or "unknown"
            raise StoreError(f"{directory} is in use by another store (process {owner})") from error
        except OSError as error:
            raise StoreError(f"cannot use {directory} for a store: {error}") from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go; closing the file drops the lock. Twice is allowed."""
        self._file.close()
