"""`mac bank`, on a store and a bundle of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mac_core.config import EngineConfig
from mac_core.engine import Engine
from mac_core.types import Answer, Document, Question
from server.bank import app, recall
from server.settings import Settings
from tests.builders import save_tiny_bundle, tiny_latent_model

WAIT_S = 60.0
TEXTS = {
    "elbe": "The river Elbe rises in the mountains and flows to the North sea.",
    "dam": "The amber dam was built by the city for the harbour, in copper and granite.",
}
QUESTION = Question(text="where does the river rise", mode="memory", max_new_tokens=1, top_k=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies one token after the other, and never ends of itself."""
    model = tiny_latent_model(seed=5)
    assert model.pointer is not None
    with torch.no_grad():
        model.pointer.gate.bias.fill_(-30.0)
        last = model.pointer.document_key[-1]
        last.weight.mul_(100.0)
        last.weight[len(last.weight) // 2 :] = 0.0
        last.bias[len(last.bias) // 2 :] = 0.0
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", model)


@pytest.fixture
def serve(bundle: Path, tmp_path: Path) -> Callable[[], Answer]:
    """Learns the texts where they are not learned yet, and answers."""

    def run() -> Answer:
        config = EngineConfig(modulation_bits=32)
        engine = Engine(bundle=bundle, store_directory=tmp_path / "bank", config=config)
        engine.start()
        try:
            assert engine.wait_until_ready(timeout_s=WAIT_S), engine.status().detail
            documents = [Document(id=name, text=text) for name, text in TEXTS.items()]
            engine.add(documents).result(WAIT_S)
            return engine.ask(QUESTION).result(WAIT_S)
        finally:
            engine.close(now=True)

    return run


@pytest.fixture
def mac(bundle: Path, tmp_path: Path) -> Callable[..., Any]:
    return lambda name, *words: CliRunner().invoke(
        app,
        [name, "--data-dir", str(tmp_path / "bank"), "--bundle", str(bundle), *words],
    )


def test_compact_rewrites_a_bank_that_goes_on_answering(serve: Any, mac: Any) -> None:
    before = serve()
    done = mac("compact", "--method", "bits", "--target", "2")
    assert done.exit_code == 0, done.output
    assert "default: 2 of 2 documents rewritten" in done.stdout
    after = serve()
    assert before.text is not None
    assert after.text == before.text  # float16 is near enough
    assert after.sources[0].span == before.sources[0].span is not None
    assert "0 of 2 documents" in mac("compact", "--method", "bits", "--target", "2").stdout


@pytest.mark.parametrize(
    ("method", "target", "bits"),
    [("merge", 16, 8), ("average", 64, 4), ("prune", 16, 8), ("prune-random", 16, 8),
     ("codebook", 16, 8)],
)  # fmt: skip
def test_spans_after_compaction_are_where_the_answer_stands(
    serve: Any, mac: Any, method: str, target: int, bits: int
) -> None:
    serve()
    words = ("--method", method, "--target", str(target), "--bits", str(bits))
    assert "would be" in mac("compact", *words, "--dry-run").stdout
    assert mac("compact", *words).exit_code == 0
    answer = serve()
    (source,) = answer.sources
    assert source.span is not None  # what the pointer copies stands in the document
    assert TEXTS[source.id][source.span.start : source.span.end] == answer.text


def test_reindex_makes_a_compacted_bank_whole(serve: Any, mac: Any) -> None:
    before = serve()
    mac("compact", "--method", "codebook", "--target", "64")
    assert mac("reindex", "--all", "--bits", "32").stdout == "2 documents re-indexed\n"
    assert serve().text == before.text
    assert "2 of 2" in mac("compact", "--method", "bits", "--target", "4").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "shrink", "--target", "4"), "shrink"),
        (("--method", "merge", "--target", "0"), "target=0"),
        (("--method", "merge", "--target", "4", "--bits", "3"), "bits=3"),
        (("--method", "merge", "--target", "4", "--namespace", "nowhere"), "nowhere"),
    ],
)
def test_a_compaction_that_cannot_be_is_one_line(
    serve: Any, mac: Any, words: tuple[str, ...], said: str
) -> None:
    serve()
    refused = mac("compact", *words)
    assert refused.exit_code == 1
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("mac bank compact:"))
    assert said in line


def test_a_store_must_be_named_once(mac: Any) -> None:
    words = ("--method", "merge", "--target", "4", "--store-url", "redis://nowhere")
    assert mac("compact", *words).exit_code == 2


def test_reindex_refuses_bits_that_there_are_not(serve: Any, mac: Any) -> None:
    serve()
    assert mac("reindex", "--bits", "3").exit_code == 2


@pytest.mark.parametrize("name", ["probes", "ef_search"])
def test_recall_measures_the_index_that_a_server_has_by_default(name: str) -> None:
    proposed = inspect.signature(recall).parameters[name].default
    assert proposed == Settings.model_fields[f"index_{name}"].default
