"""Answers are the same, bit for bit, whichever tier the modulations are in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mac_core.config import EngineConfig, TierConfig
from mac_core.engine import Engine
from mac_core.types import Answer, Document, Question, Timings
from tests.builders import tiny_bert_model, tiny_latent_model

WAIT_S = 120.0  # real networks, on a machine that may be busy

TEXTS = ("the river elbe flows by the dam", "amber was built in the north city", "cedar bridge")
QUESTIONS = ("which river flows by the dam", "what was built in the north", "name the bridge")


def answers_of(model: Any, directory: Path, tiers: TierConfig) -> list[Answer]:
    engine = Engine(
        bundle=Path("tiny"),
        store_directory=directory,
        config=EngineConfig(tiers=tiers),
        load=lambda: model,
    )
    engine.start()
    try:
        assert engine.wait_until_ready(timeout_s=WAIT_S), engine.status().detail
        documents = [Document(id=str(n), text=text) for n, text in enumerate(TEXTS)]
        engine.add(documents).result(WAIT_S)
        asked = [
            engine.ask(Question(text=text, mode="memory", max_new_tokens=8)).result(WAIT_S)
            for text in (*QUESTIONS, *QUESTIONS)
        ]
        assert sum(engine.status().tier_bytes.values()) > 0
        return [replace(answer, timings_ms=Timings()) for answer in asked]
    finally:
        engine.close(now=True)


@pytest.mark.parametrize("max_ram_bytes", [0, 20_000])
@pytest.mark.parametrize("make_model", [tiny_latent_model, tiny_bert_model])
def test_the_tier_of_a_document_changes_no_answer(
    tmp_path: Path, make_model: Any, max_ram_bytes: int
) -> None:
    model = make_model()
    tiers = TierConfig(max_ram_bytes=max_ram_bytes, directory=str(tmp_path / "tiers"))
    assert answers_of(model, tmp_path / "a", tiers) == answers_of(
        model, tmp_path / "b", TierConfig()
    )
