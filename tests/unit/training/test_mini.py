"""The recipe from data to bundle and its command line, on a tiny model and made-up paragraphs."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mac_core.training.mini as mini
from mac_core.errors import CheckpointError
from mac_core.networks.build import load_bundle, model_states
from mac_core.networks.checkpoint import BundleContents, read_bundle
from mac_core.networks.model import MacModel
from mac_core.networks.quantization import StoredDtype
from mac_core.training.calibration import Calibration, calibrate
from mac_core.training.cli import app
from mac_core.training.data import Batch, EncodedParagraphs, mine_neighbours, sample_batch
from mac_core.training.encoding import IntArray
from mac_core.training.mini import export_mini, load_sources, train_mini
from mac_core.training.options import MiniOptions
from mac_core.training.resume import read_notes
from mac_core.training.trainer import STATE_FILE
from mac_core.types import Fingerprint
from tests.builders import tiny_latent_model
from tests.unit.training.samples import encoded, paragraphs


@pytest.fixture
def options(tmp_path: Path) -> MiniOptions:
    return MiniOptions(
        data_directory=tmp_path,
        run_directory=tmp_path / "run",
        minutes=0.001,
        num_paragraphs=4,
        questions_per_paragraph=1,
        num_threads=torch.get_num_threads(),
        log_every=1,
        validation_questions=4,  # the default 512 would take most of every test
    )


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model in place of the warm start, made-up paragraphs in place of SQuAD."""
    monkeypatch.setattr(mini, "warm_mini", lambda options: tiny_latent_model(seed=options.seed))
    monkeypatch.setattr(mini, "load_sources", lambda options: (paragraphs(), paragraphs()))


@pytest.mark.usefixtures("_tiny")
def test_bundle_holds_what_was_trained(options: MiniOptions, tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    trained = train_mini(options, report=lines.append)
    calibration = export_mini(
        options, tmp_path / "bundle", dtype="float32", calibration_questions=4
    )
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.config.selection == calibration.selection
    assert loaded.config.confidence == calibration.confidence
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0.0, atol=0.0)
    untrained = tiny_latent_model(seed=options.seed).state_dict()
    assert any(not torch.equal(value, untrained[k]) for k, value in loaded.state_dict().items())
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["training"]["progress"]["step"] == lines[-1]["step"]
    notes = read_notes(options.run_directory / STATE_FILE)
    assert manifest["training"]["options"] == notes["options"]


@pytest.mark.usefixtures("_tiny")
def test_run_starts_from_a_bundles_weights(options: MiniOptions, tmp_path: Path) -> None:
    train_mini(options)
    export_mini(options, tmp_path / "first", dtype="float32", calibration_questions=4)
    further = replace(
        options, run_directory=tmp_path / "further", start_from=tmp_path / "first", seed=1
    )
    model = tiny_latent_model(seed=1)
    mini.start_from(model, read_bundle(tmp_path / "first"))
    torch.testing.assert_close(model.state_dict(), load_bundle(tmp_path / "first").state_dict())
    further = replace(further, learning_rate=0.0)  # steps that change nothing
    still = train_mini(further)
    torch.testing.assert_close(still.state_dict(), model.state_dict())
    export_mini(further, tmp_path / "second", dtype="float32", calibration_questions=4)
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    first = json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert manifest["training"]["before"] == first["training"]
    hashes = manifest["training"]["options"]["start_from"]
    assert hashes == asdict(read_bundle(tmp_path / "first").fingerprint)
    back = replace(further, start_share=1.0)  # nothing of what was trained
    export_mini(back, tmp_path / "third", dtype="float32", calibration_questions=4)
    torch.testing.assert_close(load_bundle(tmp_path / "third").state_dict(), model.state_dict())


@pytest.mark.usefixtures("_tiny")
def test_run_is_neither_resumed_nor_exported_from_another_bundle(
    options: MiniOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The weights are A's descendants; the manifest would have said B's.
    bundles = {
        tmp_path / name: replace(
            contents_of(tiny_latent_model(seed=seed)),
            fingerprint=Fingerprint(amortization_hash=name, base_lm_hash=name),
        )
        for seed, name in enumerate(("A", "B"))
    }
    monkeypatch.setattr(mini, "read_bundle", bundles.__getitem__)
    of_a = replace(options, start_from=tmp_path / "A", validation_questions=0)
    of_b = replace(of_a, start_from=tmp_path / "B")
    train_mini(of_a)
    with pytest.raises(CheckpointError, match=r"trained with start_from=\{.*'A'.*, not \{.*'B'"):
        train_mini(of_b)
    with pytest.raises(CheckpointError, match=r"trained with start_from=\{.*'A'.*, not \{.*'B'"):
        export_mini(of_b, tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="trained with seed=0, not 1"):
        export_mini(replace(of_a, seed=1), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("_tiny")
def test_recipe_draws_its_batches_of_mined_neighbours(
    options: MiniOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Defect 11: distractors that nobody would take for the right document.
    drawn_of: list[IntArray] = []

    def noted(encoded: EncodedParagraphs, neighbours: IntArray, **named: Any) -> Batch:
        drawn_of.append(neighbours)
        return sample_batch(encoded, neighbours, **named)

    monkeypatch.setattr("mac_core.training.trainer.sample_batch", noted)
    train_mini(options)
    mined = mine_neighbours(encoded())
    assert drawn_of
    assert all(np.array_equal(neighbours, mined) for neighbours in drawn_of)


def contents_of(model: MacModel) -> BundleContents:
    base_lm, networks = model_states(model)
    return BundleContents(
        config=model.config,
        base_lm_config={},
        encoder_config=None,
        base_lm_state=base_lm,
        amortization_state=networks,
        tokenizer_json="",
        fingerprint=model.fingerprint,
        manifest={},
    )


def test_what_is_exported_may_lie_between_the_start_and_the_end() -> None:
    start, trained = tiny_latent_model(seed=0), tiny_latent_model(seed=1)
    before = {name: weight.detach().clone() for name, weight in trained.named_parameters()}
    mini.mix(trained, contents_of(start), share=0.25)
    for name, weight in start.named_parameters():
        between = 0.25 * weight.detach() + 0.75 * before[name]
        torch.testing.assert_close(trained.get_parameter(name).detach(), between)


def test_what_a_bundle_lacks_begins_untrained_and_what_is_unknown_is_refused() -> None:
    old = tiny_latent_model(seed=0)
    contents = contents_of(old)
    without = {k: v for k, v in contents.amortization_state.items() if ".late." not in k}
    contents = replace(contents, amortization_state=without)
    new = tiny_latent_model(seed=1)
    fresh = new.aggregation.late.key.weight.clone()
    mini.start_from(new, contents)
    assert torch.equal(new.aggregation.late.key.weight, fresh)
    assert torch.equal(new.aggregation.evidence.weight, old.aggregation.evidence.weight)
    unknown = replace(contents, amortization_state={**without, "other.weight": fresh})
    with pytest.raises(CheckpointError, match=r"other\.weight is unexpected"):
        mini.start_from(new, unknown)


def test_every_seed_leaves_the_same_articles_out_and_a_source_may_have_a_share(
    tmp_path: Path,
) -> None:
    squad_file(tmp_path, articles=20)
    squad_file(tmp_path, articles=20, name="squadshifts/reddit-v1.0.json.xz")
    options = MiniOptions(
        data_directory=tmp_path,
        run_directory=tmp_path,
        minutes=1.0,
        held_out_fraction=0.2,
        sources=("squad", "squadshifts-reddit:0.5"),
    )
    train, held_out = mini.load_sources(options)
    assert (len(train), len(held_out)) == (16 + 8, 4)
    assert mini.load_sources(replace(options, seed=1))[1] == held_out
    assert mini.load_sources(replace(options, split_seed=1))[1] != held_out


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("newsqa", "no source is called newsqa"),
        ("squad:half", "'half' is not a share"),
        ("squad:0", "'squad:0': a share is above 0"),
        ("squad:1.5", "no more than all of a source"),
    ],
)
def test_source_that_is_none_is_refused(tmp_path: Path, source: str, reason: str) -> None:
    options = MiniOptions(
        data_directory=tmp_path, run_directory=tmp_path, minutes=1.0, sources=(source,)
    )
    with pytest.raises(ValueError, match=reason):
        mini.load_sources(options)


def test_layers_that_only_selection_uses_may_begin_again() -> None:
    old, new = tiny_latent_model(seed=0), tiny_latent_model(seed=1)
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    mini.start_from(new, contents_of(old), selection_restarts=True)
    wanted = {
        name: fresh[name] if name.startswith("amortization.upper.") else value
        for name, value in old.state_dict().items()
    }
    torch.testing.assert_close(new.state_dict(), wanted, rtol=0.0, atol=0.0)


@torch.no_grad()
def test_what_reads_modulations_may_begin_as_what_reads_text() -> None:
    old, new = tiny_latent_model(seed=0), tiny_latent_model(seed=1)
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    mini.start_from(new, contents_of(old), reading_restarts=True)
    state = new.state_dict()
    assert torch.equal(state["prefix.scale"], fresh["prefix.scale"])
    assert torch.equal(state["aggregation.evidence.weight"], fresh["aggregation.evidence.weight"])
    for name in ("aggregation.late.key.weight", "pointer.gate.weight"):
        assert torch.equal(state[name], old.state_dict()[name])
    assert torch.equal(state["pointer.document_key.0.weight"], state["pointer.text_key.0.weight"])
    # A text's first part, alone, and the rest of it are the base LM's reading of that text.
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    first = new.config.amortization.document_position
    trunk = new.base_lm.model.base_model
    bias = torch.zeros(1, 1, 5, 5)
    read = trunk(
        input_ids=ids, position_ids=first + torch.arange(5)[None], attention_mask=bias
    ).last_hidden_state
    slots = new.encode_documents(ids, mask).slots
    torch.testing.assert_close(new.aggregation.stack(slots, mask), read)


def test_a_bundle_of_another_depth_is_refused_unless_reading_restarts() -> None:
    old = contents_of(tiny_latent_model(seed=0))
    deeper = {
        name.replace("stack.layers.0.", "stack.layers.1."): value
        for name, value in old.amortization_state.items()
        if "aggregation.stack." in name
    }
    other = replace(old, amortization_state={**old.amortization_state, **deeper})
    with pytest.raises(CheckpointError, match=r"stack\.layers\.1\..* is unexpected"):
        mini.start_from(tiny_latent_model(seed=1), other)
    mini.start_from(tiny_latent_model(seed=1), other, reading_restarts=True)
    # The same shapes, but documents stand at other positions.
    settings = replace(old.config.amortization, document_position=0)
    moved = replace(old, config=replace(old.config, amortization=settings))
    with pytest.raises(
        CheckpointError, match=r"document_position=0.*, not .*document_position=128"
    ):
        mini.start_from(tiny_latent_model(seed=1), moved)
    mini.start_from(tiny_latent_model(seed=1), moved, reading_restarts=True)


@pytest.mark.usefixtures("_tiny")
def test_bundle_names_no_path_of_the_machine(options: MiniOptions, tmp_path: Path) -> None:
    train_mini(options)
    export_mini(options, tmp_path / "bundle", calibration_questions=4)
    texts = [path.read_text() for path in (tmp_path / "bundle").rglob("*.json")]
    assert len(texts) == 4
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_calibrated_is_what_ships(
    options: MiniOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: StoredDtype
) -> None:
    measured: list[dict[str, torch.Tensor]] = []

    def noted(model: MacModel, *arguments: Any, **named: Any) -> Calibration:
        measured.append({name: value.clone() for name, value in model.state_dict().items()})
        return calibrate(model, *arguments, **named)

    monkeypatch.setattr(mini, "calibrate", noted)
    trained = train_mini(options)
    export_mini(options, tmp_path / "bundle", dtype=dtype, calibration_questions=4)
    shipped = load_bundle(tmp_path / "bundle").state_dict()
    torch.testing.assert_close(measured[0], shipped, rtol=1e-6, atol=0.0)
    assert any(not torch.equal(value, shipped[k]) for k, value in trained.state_dict().items())


@pytest.mark.usefixtures("_tiny")
def test_run_without_a_checkpoint_is_not_exported(options: MiniOptions, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        export_mini(options, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def squad_file(directory: Path, *, articles: int, name: str = "squad/train-v1.1.json.xz") -> None:
    entry: dict[str, Any] = {"context": "The dam is old.", "qas": []}
    data = [{"title": f"article {i}", "paragraphs": [entry]} for i in range(articles)]
    path = directory / name
    path.parent.mkdir()
    path.write_bytes(lzma.compress(json.dumps({"data": data}).encode()))


def test_held_out_paragraphs_are_of_other_articles(tmp_path: Path) -> None:
    squad_file(tmp_path, articles=50)
    train, held_out = load_sources(
        MiniOptions(
            data_directory=tmp_path, run_directory=tmp_path, minutes=1.0, sources=("squad",)
        )
    )
    assert held_out
    assert not {p.article for p in train} & {p.article for p in held_out}
    assert len(train) + len(held_out) == 50


def test_further_sources_give_a_share_of_their_paragraphs_and_hold_nothing_out(
    tmp_path: Path,
) -> None:
    squad_file(tmp_path, articles=50)
    squad_file(tmp_path, articles=50, name="squadshifts/reddit-v1.0.json.xz")
    both = MiniOptions(
        data_directory=tmp_path,
        run_directory=tmp_path,
        minutes=1.0,
        sources=("squad", "squadshifts-reddit"),
        further_share=0.5,
    )
    train, held_out = load_sources(both)
    first, first_held_out = load_sources(replace(both, sources=("squad",)))
    assert held_out == first_held_out
    assert train[: len(first)] == first
    assert len(train) - len(first) == round(0.5 * len(first))  # the same articles are kept back


# ---- the command


def invoke(tmp_path: Path, *arguments: str) -> Any:
    paths = ["--data", str(tmp_path), "--run", str(tmp_path / "run"), "--minutes", "0.01"]
    return CliRunner().invoke(app, ["mini", *paths, "--num-threads", "1", *arguments])


def test_command_refuses_a_source_it_does_not_know(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--sources", "squad,newsqa")
    assert result.exit_code == 1
    assert "mac train: no source is called newsqa; known: squad," in result.output


def test_command_refuses_a_mode_it_does_not_know(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--modes", "oracle:1")
    assert result.exit_code == 2
    assert "'oracle:1'" in result.output


@pytest.mark.parametrize("restarts", ["--reading-restarts", "--selection-restarts"])
def test_command_refuses_a_share_of_weights_that_restart(tmp_path: Path, restarts: str) -> None:
    start = ("--start-from", str(tmp_path), "--start-share", "0.25")
    result = invoke(tmp_path, restarts, *start)
    assert result.exit_code == 2
    assert "weights that restart" in result.output


@pytest.mark.parametrize(
    "option", [("--start-share", "0.25"), ("--selection-restarts",), ("--reading-restarts",)]
)
def test_command_refuses_what_is_of_a_start_that_it_has_not(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    result = invoke(tmp_path, *option)
    assert result.exit_code == 2
    assert option[0] in result.output
    assert "needs a bundle" in result.output


def test_command_refuses_a_depth_that_leaves_selection_no_layers(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--depth", "5")
    assert result.exit_code == 2
    assert "equal to 4" in result.output


def test_command_refuses_a_dtype_it_does_not_know(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--dtype", "int4")
    assert result.exit_code == 2
    assert "'int4'" in result.output


@pytest.mark.usefixtures("_tiny")
def test_command_trains_exports_and_prints_what_it_measured(tmp_path: Path) -> None:
    result = invoke(
        tmp_path,
        *("--bundle", str(tmp_path / "bundle"), "--calibration-questions", "10"),
        *("--num-paragraphs", "4", "--dtype", "bfloat16"),
    )
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout.splitlines()[-1])
    bundle = load_bundle(tmp_path / "bundle")
    assert measured["top_k"] == bundle.config.selection.top_k
    assert measured["questions"] == 4
    # The tiny model ends at once after what it could copy, and is judged by what it writes alone.
    assert bundle.config.confidence.none is not None
    threshold = bundle.config.confidence.none.threshold
    assert measured["confidence"]["none"]["threshold"] == threshold
