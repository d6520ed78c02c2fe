"""A bundle comes back as it was written, and every planted defect is refused by name."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ConfidenceConfig,
    ConfidenceWeights,
    ModelConfig,
    PointerConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.errors import CheckpointError
from mac_core.networks.checkpoint import find_tied, load_strictly, read_bundle, save_bundle
from mac_core.networks.files import sha256_file

CONFIG = ModelConfig(
    name="tiny",
    amortization=AmortizationConfig(
        kind="layerwise",
        num_virtual_tokens=4,
        d_modulation=64,
        max_tokens=64,
        chunk_overlap_tokens=8,
    ),
    aggregation=AggregationConfig(kind="select", d_modulation=64, d_question=32),
    prefix=PrefixConfig(kind="layerwise"),
    selection=SelectionConfig(d_key=16),
    pointer=PointerConfig(d_pointer=8),
)
TOKENIZER = Tokenizer(models.WordLevel({"[UNK]": 0, "elbe": 1}, unk_token="[UNK]")).to_str()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def base_lm_state() -> dict[str, Tensor]:
    embedding = normal(128, 32)
    return {"embedding": embedding, "norm": normal(32), "head": embedding}


def write(path: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "name": "tiny",
        "config": CONFIG,
        "base_lm_config": {"model_type": "bert", "vocab_size": 128},
        "encoder_config": {"model_type": "bert"},
        "base_lm_state": base_lm_state(),
        "amortization_state": {"query.weight": normal(64, 64), "steps": torch.arange(3)},
        "tokenizer_json": TOKENIZER,
        "dtype": "float32",
        "training": {"seed": 1, "command": "mac train mini"},
    }
    save_bundle(path, **(arguments | changes))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny")


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# ---- round trips


def test_bundle_comes_back_as_written(bundle: Path) -> None:
    contents = read_bundle(bundle)
    assert contents.config == CONFIG
    assert contents.base_lm_config == {"model_type": "bert", "vocab_size": 128}
    assert contents.encoder_config == {"model_type": "bert"}
    assert contents.tokenizer_json == TOKENIZER
    assert contents.manifest["training"] == {"seed": 1, "command": "mac train mini"}
    assert contents.base_lm_state.keys() == base_lm_state().keys()
    assert all(contents.base_lm_state[k].equal(v) for k, v in base_lm_state().items())
    assert contents.amortization_state["steps"].tolist() == [0, 1, 2]
    assert "mac train mini" in (bundle / "MODEL_CARD.md").read_text()


# bfloat16 keeps 8 bits; int8 half a step of the row's maximum, which is below 4 for these values.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("int8", 4 / 127 / 2)])
def test_reduced_weights_come_back_close_as_float32(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    contents = read_bundle(write(tmp_path / "tiny", dtype=dtype))
    weight = contents.amortization_state["query.weight"]
    assert weight.dtype == torch.float32
    assert not weight.equal(normal(64, 64))
    torch.testing.assert_close(weight, normal(64, 64), rtol=0, atol=tolerance)
    assert contents.base_lm_state["norm"].equal(normal(32))


def test_bundle_without_encoder_has_none(tmp_path: Path) -> None:
    contents = read_bundle(write(tmp_path / "tiny", encoder_config=None))
    assert contents.encoder_config is None


def test_same_input_gives_the_same_bytes(tmp_path: Path, bundle: Path) -> None:
    again = write(tmp_path / "again")
    files = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert all((again / file).read_bytes() == (bundle / file).read_bytes() for file in files)


def test_shared_tensors_are_stored_once_and_come_back_shared(bundle: Path) -> None:
    stored = safetensors.torch.load_file(bundle / "base_lm.safetensors")
    assert set(stored) == {"embedding", "norm"}
    state = read_bundle(bundle).base_lm_state
    assert state["head"].data_ptr() == state["embedding"].data_ptr()


def test_find_tied_ignores_views_and_empty_tensors() -> None:
    whole = normal(4, 4)
    state = {"a": whole, "b": whole[:2], "c": whole.T, "d": torch.empty(0), "e": torch.empty(0)}
    assert find_tied(state) == {}


def test_save_replaces_a_bundle_and_leaves_nothing_beside_it(bundle: Path) -> None:
    write(bundle, training={"seed": 2})
    assert read_bundle(bundle).manifest["training"] == {"seed": 2}
    assert [path.name for path in bundle.parent.iterdir()] == ["tiny"]


def test_failed_save_leaves_the_old_bundle(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="query"):
        write(bundle, amortization_state={"query": torch.tensor(float("nan"))})
    assert read_bundle(bundle).config == CONFIG
    assert [path.name for path in bundle.parent.iterdir()] == ["tiny"]


def test_save_does_not_replace_a_directory_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="letters"):
        write(tmp_path / "letters")
    assert (tmp_path / "letters" / "mother.txt").read_text() == "dear"


# ---- hashes


def hashes(path: Path) -> tuple[str, str]:
    fingerprint = read_bundle(path).fingerprint
    return fingerprint.amortization_hash, fingerprint.base_lm_hash


def test_selection_settings_change_no_hash(tmp_path: Path, bundle: Path) -> None:
    selection = replace(CONFIG.selection, top_k=8, dense_scale=1.0)
    other = write(tmp_path / "other", config=replace(CONFIG, selection=selection))
    assert hashes(other) == hashes(bundle)


CONFIDENCE = ConfidenceConfig(
    memory=ConfidenceWeights(weights={"cosine": 2.5, "overlap": -0.125}, bias=-1.5, threshold=0.25)
)


def test_confidence_comes_back_and_changes_no_hash(tmp_path: Path, bundle: Path) -> None:
    other = write(tmp_path / "other", config=replace(CONFIG, confidence=CONFIDENCE))
    assert read_bundle(other).config.confidence == CONFIDENCE
    assert hashes(other) == hashes(bundle)


def test_a_manifest_from_before_confidence_was_calibrated_has_none(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest["config"].pop("confidence"))
    assert read_bundle(bundle).config.confidence == ConfidenceConfig()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": {"colour": 1.0}}, "colour"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"slope": 1.0}, "slope"),
    ],
)
def test_read_names_what_is_wrong_with_a_confidence(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "tiny", config=replace(CONFIG, confidence=CONFIDENCE))
    edit_manifest(path, lambda m: m["config"]["confidence"]["memory"].update(change))
    with pytest.raises(CheckpointError, match=said):
        read_bundle(path)


@pytest.mark.parametrize(
    ("changes", "amortization_changes", "base_lm_changes"),
    [
        ({"amortization_state": {"query.weight": normal(3, 3)}}, True, False),
        ({"config": replace(CONFIG, pointer=None)}, True, False),
        (
            {"config": replace(CONFIG, amortization=replace(CONFIG.amortization, pool=2))},
            True,
            False,
        ),
        (
            {
                "config": replace(
                    CONFIG, amortization=replace(CONFIG.amortization, document_position=2)
                )
            },
            True,
            False,
        ),
        ({"config": replace(CONFIG, selection=replace(CONFIG.selection, d_key=8))}, True, False),
        ({"encoder_config": {"model_type": "t5"}}, True, False),
        ({"base_lm_state": {"embedding": normal(3, 3)}}, False, True),
        ({"base_lm_config": {"vocab_size": 64}}, False, True),
        ({"tokenizer_json": TOKENIZER.replace("elbe", "oder")}, True, True),
    ],
)
def test_hashes_follow_what_they_cover(
    tmp_path: Path,
    bundle: Path,
    changes: dict[str, Any],
    amortization_changes: bool,
    base_lm_changes: bool,
) -> None:
    before, after = hashes(bundle), hashes(write(tmp_path / "other", **changes))
    assert (before[0] != after[0]) == amortization_changes
    assert (before[1] != after[1]) == base_lm_changes


def test_a_manifest_from_before_a_setting_was_there_keeps_its_hash(bundle: Path) -> None:
    before = read_bundle(bundle).fingerprint
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("selection_layers", "document_position"):
        del manifest["config"]["amortization"][name]
    settings = {
        "weights": manifest["files"]["amortization.safetensors"],
        "encoder": manifest["files"].get("encoder/config.json"),
        "tokenizer": manifest["files"]["tokenizer.json"],
        "amortization": manifest["config"]["amortization"],
        "pointer": manifest["config"]["pointer"],
        "d_key": manifest["config"]["selection"]["d_key"],
    }
    as_then = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    assert before.amortization_hash == as_then
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert read_bundle(bundle).fingerprint == before


# ---- planted defects


@pytest.mark.parametrize(
    "name",
    ["base_lm.safetensors", "amortization.safetensors", "tokenizer.json", "encoder/config.json"],
)
def test_read_names_the_file_with_a_flipped_byte(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["manifest.json", "base_lm.safetensors", "tokenizer.json", "base_lm/config.json"]
)
def test_read_names_the_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update(format_version=2), "format_version 2"),
        (lambda m: m.pop("format_version"), "format_version None"),
        (lambda m: m.pop("tied"), "'tied' is missing"),
        (lambda m: m.update(colour="red"), "'colour' is unknown"),
        (lambda m: m["files"].pop("tokenizer.json"), "'tokenizer.json' is missing"),
        (lambda m: m["files"].update({"../secret": "0"}), "'../secret' is unknown"),
        (lambda m: m.update(files=[]), "files is not an object"),
        (lambda m: m["config"].pop("prefix"), "prefix"),
        (lambda m: m["config"]["pointer"].update(d_pointer="wide"), "config"),
        (lambda m: m["config"]["pointer"].update(d_pointer=9), "amortization_hash"),
        (lambda m: m.update(base_lm_hash="0"), "base_lm_hash"),
        (lambda m: m["tied"]["base_lm.safetensors"].update(head="tail"), "head.*tail"),
    ],
)
def test_read_names_what_is_wrong_in_the_manifest(
    bundle: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(CheckpointError, match=named):
        read_bundle(bundle)


def test_read_refuses_a_manifest_that_is_not_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_bundle(bundle)


def test_read_refuses_weights_that_are_not_safetensors(bundle: Path) -> None:
    weights = bundle / "base_lm.safetensors"
    weights.write_bytes(b"not tensors")
    files = {"base_lm.safetensors": sha256_file(weights)}
    edit_manifest(bundle, lambda manifest: manifest["files"].update(files))
    with pytest.raises(CheckpointError, match="base_lm"):
        read_bundle(bundle)


@pytest.mark.parametrize(("vocab_size", "text"), [(1, TOKENIZER), (128, "{}")])
def test_save_refuses_a_tokenizer_that_does_not_fit(
    tmp_path: Path, vocab_size: int, text: str
) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        write(tmp_path / "t", base_lm_config={"vocab_size": vocab_size}, tokenizer_json=text)


def test_read_refuses_a_tokenizer_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Defect 10: a bundle whose hashes are right may still be of parts that do not belong together.
    with monkeypatch.context() as unchecked:
        unchecked.setattr("mac_core.networks.checkpoint._check_tokenizer", lambda *_: None)
        path = write(tmp_path / "t", base_lm_config={"vocab_size": 1})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 2 tokens"):
        read_bundle(path)


# ---- load_strictly


class TiedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight


def test_load_strictly_fills_tied_names() -> None:
    model = TiedModel()
    load_strictly(
        model, {"embedding.weight": normal(4, 3)}, tied={"head.weight": "embedding.weight"}
    )
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.equal(normal(4, 3))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("bias"), "bias is missing"),
        (lambda s: s.update(extra=normal(1)), "extra is unexpected"),
        (lambda s: s.update(weight=normal(2, 4)), r"weight has shape \(2, 4\), wanted \(2, 3\)"),
    ],
)
def test_load_strictly_names_the_key_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {"weight": normal(2, 3), "bias": normal(2)}
    change(state)
    with pytest.raises(CheckpointError, match=named):
        load_strictly(module, state)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


def test_load_strictly_names_every_defect_at_once() -> None:
    with pytest.raises(CheckpointError, match="bias is missing; weight is missing; other is unexp"):
        load_strictly(nn.Linear(3, 2), {"other": normal(1)})


def test_load_strictly_refuses_tied_tensors_that_differ() -> None:
    state = {"embedding.weight": normal(4, 3), "head.weight": normal(4, 3) + 1}
    with pytest.raises(CheckpointError, match=r"head\.weight differs from embedding\.weight"):
        load_strictly(TiedModel(), state, tied={"head.weight": "embedding.weight"})
