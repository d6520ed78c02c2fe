"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mac_core.errors import CheckpointError


def to_json(values: Mapping[str, object]) -> str:
    """Readable JSON; the same values give the same text."""
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing from {path.parent}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object")
    return values


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write and sync a new file, making its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`: after a crash it holds the old bytes or the new, never a mix."""
    staging = beside(path)
    try:
        write_file(staging, content)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    _sync_directory(path.parent)


def replace_directory(staging: Path, path: Path) -> None:
    """Rename `staging` to `path`, taking what is there away.

    Two renames, as no portable call exchanges directories: a crash between them leaves nothing
    at `path` and both directories, whole, beside it.
    """
    retired = beside(path)
    if path.exists():
        path.rename(retired)
    try:
        staging.rename(path)
    except OSError:
        if retired.exists():
            retired.rename(path)
        raise
    _sync_directory(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def beside(path: Path) -> Path:
    """A hidden, unused name in the same directory, hence on the same file system."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
