"""Where measured numbers come from: the source, the configuration, the data, the machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path

from mac_core.config import ModelConfig, to_dict

PACKAGE = Path(__file__).resolve().parents[1]


def source_commit() -> str:
    """The commit of this source tree, `-dirty` when files differ from it; else `unknown`."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside somebody else's repository
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            [*command, "--dirty"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


@cache
def code_sha256() -> str:
    """`python_sha256` of this package, as it is when first asked for.

    Unlike the commit it tells two dirty trees apart, and two installs.
    """
    return python_sha256(PACKAGE)


def python_sha256(package: Path) -> str:
    """sha256, hex, of the names and bytes of all Python files in a directory."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def config_fingerprint(config: ModelConfig) -> str:
    """sha256, hex, of the configuration as canonical JSON."""
    canonical = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256, hex, of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
