"""Which questions of a corpus a bundle cannot have been trained on.

The trainer leaves a share of each source's articles out; which, follows from the seed and the share
in the bundle's manifest. Whether the bundle was trained on that source at all is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mac_core.errors import InvalidInput
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.networks.files import read_json
from mac_core.networks.manifest import MANIFEST
from mac_core.types import Document


def training_options(bundle: Path) -> Mapping[str, Any]:
    """What the manifest says of the training that made a bundle.

    Raises:
        CheckpointError: there is no readable manifest.
        InvalidInput: it names no options.
    """
    options = read_json(bundle / MANIFEST).get("training", {}).get("options")
    if not isinstance(options, dict) or not {"seed", "held_out_fraction"} <= set(options):
        raise InvalidInput(f"{bundle.name} does not say which articles its training left out")
    return options


def held_out_questions(
    path: Path,
    documents: Sequence[Document],
    questions: Sequence[SquadQuestion],
    *,
    options: Mapping[str, Any],
) -> list[SquadQuestion]:
    """Those of a file's questions whose article the training left out.

    Raises:
        InvalidInput: it left no article of this file out.
    """
    from mac_core.training.corpora import load_fairytaleqa, load_squad, split_by_article

    load = load_fairytaleqa if ".jsonl" in path.suffixes else load_squad
    fraction = float(options["held_out_fraction"])
    seed = int(options.get("split_seed", options["seed"]))  # older runs split by their seed
    train, held_out = split_by_article(load(path), held_out_fraction=fraction, seed=seed)
    texts = {paragraph.text for paragraph in held_out} - {paragraph.text for paragraph in train}
    ids = {document.id for document in documents if document.text in texts}
    kept = [question for question in questions if question.document_id in ids]
    if not kept:
        articles = {paragraph.article for paragraph in [*train, *held_out]}
        raise InvalidInput(
            f"no question of {path.name} is on an article that training left out: a share of "
            f"{fraction} of {len(articles)} articles"
        )
    return kept
