"""One process per store directory: an advisory lock that the kernel drops with its owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from mac_core.errors import StoreError

LOCK_FILE = "bank.lock"


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
            self._file = path.open("a+", encoding="ascii")
        except OSError as error:
            raise StoreError(f"cannot use {directory} for a store: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read(32).strip() or "unknown"
            self._file.close()
            raise StoreError(f"{directory} is in use by another store (process {owner})") from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go; closing the file drops the lock. Twice is allowed."""
        self._file.close()
