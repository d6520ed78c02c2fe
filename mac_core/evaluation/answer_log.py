"""Answers on disk while an evaluation runs, so that a killed run costs one batch.

One JSON-lines file for each mode, beside the description of the run that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mac_core.errors import InvalidInput
from mac_core.evaluation.results import Prediction
from mac_core.networks.files import replace_file

RUN_FILE = "run.json"


class AnswerLog:
    """What one run has answered so far. Without a directory it remembers nothing."""

    def __init__(self, directory: Path | None, *, run: Mapping[str, Any]) -> None:
        """
        Args:
            run: everything that decides an answer; another run's directory is refused.

        Raises:
            InvalidInput: the directory belongs to another run.
        """
        self._directory = directory
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / RUN_FILE
        if not path.exists():
            replace_file(path, json.dumps(run, indent=1).encode())
        elif (kept := json.loads(path.read_text(encoding="utf-8"))) != run:
            differs = sorted(k for k in {*kept, *run} if kept.get(k) != run.get(k))
            raise InvalidInput(f"{directory} holds another run: {', '.join(differs)} differ")

    def read(self, mode: str) -> dict[str, Prediction]:
        """The kept predictions of a mode by question id."""
        return {prediction.question_id: prediction for prediction in self._lines(mode)}

    def append(self, mode: str, predictions: Sequence[Prediction]) -> None:
        """Keep one finished batch."""
        if self._directory is None:
            return
        lines = "".join(json.dumps(asdict(prediction)) + "\n" for prediction in predictions)
        with self._path(mode).open("a", encoding="utf-8") as stream:
            stream.write(lines)

    def _lines(self, mode: str) -> Iterator[Prediction]:
        if self._directory is None or not self._path(mode).exists():
            return
        content = self._path(mode).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a killed run can leave half a line
        if whole != content:
            replace_file(self._path(mode), whole)
        for line in whole.split(b"\n")[:-1]:
            yield Prediction(**json.loads(line))

    def _path(self, mode: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{mode}.jsonl"
