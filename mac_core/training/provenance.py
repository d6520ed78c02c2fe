"""What a run was told, as its checkpoints and the bundle's manifest record it.

A checkpoint is taken up under the options it was made with and no others: the manifest would name
those that trained nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mac_core.errors import CheckpointError
from mac_core.training.options import MiniOptions
from mac_core.types import Fingerprint

FREE = frozenset(  # options that may change between resumptions and at export
    {
        "minutes",
        "start_share",
        "validation_questions",
        "checkpoint_minutes",
        "log_every",
        "device",
        "num_threads",
    }
)


def options_record(options: MiniOptions, start: Fingerprint | None) -> dict[str, Any]:
    """Options as JSON values; the paths of the machine stay out.

    Args:
        start: of the bundle `options.start_from`; recorded in place of its path.
    """
    values = asdict(options)
    del values["data_directory"], values["run_directory"], values["start_from"]
    if start is not None:
        values["start_from"] = asdict(start)
    record: dict[str, Any] = json.loads(json.dumps(values))  # as it is read back: lists, no tuples
    return record


def check_trained_with(path: Path, notes: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Compare a checkpoint's options with those that it is to be taken up under.

    Args:
        notes: of the checkpoint at `path`.
        record: of `options_record`, now.

    Raises:
        CheckpointError: an option that is not `FREE` differs, or the checkpoint names none.
    """
    if "options" not in notes:
        raise CheckpointError(
            f"{path}: does not say which options trained it; an older version wrote it"
        )
    trained: Mapping[str, Any] = notes["options"]
    differing = [
        f"{name}={trained.get(name)!r}, not {record.get(name)!r}"
        for name in sorted((trained.keys() | record.keys()) - FREE)
        if trained.get(name) != record.get(name)
    ]
    if differing:
        raise CheckpointError(f"{path}: trained with {'; '.join(differing)}")
