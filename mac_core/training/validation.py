"""Losses on held-out articles: what tells two runs apart long before answers do.

The same questions, and the same documents in each batch, for every run with the same options:
differences are paired by question, and some hundred show what would take thousands of answers.
Distractors and priors are the run's own: a document stands beside those of its batch that this
model's selection finds hardest to tell from it.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from mac_core.networks.model import MacModel
from mac_core.training.data import EncodedParagraphs, sample_batch
from mac_core.training.encoding import IntArray
from mac_core.training.options import MiniOptions
from mac_core.training.step import StepConfig, training_loss
from mac_core.types import Mode

MODES: tuple[Mode, ...] = ("memory", "hybrid", "text")


@torch.no_grad()
def held_out_losses(
    model: MacModel,
    encoded: EncodedParagraphs,
    neighbours: IntArray,
    options: MiniOptions,
) -> dict[str, float]:
    """Mean of each loss by name and mode, as in `answer_memory`, in nats.

    About `options.validation_questions` are asked, in whole batches and at least one; none where
    it is 0, or no paragraph has a question. A batch has no more paragraphs than have questions.
    The right document stands beside as many distractors as in training; in `hybrid` the prompt
    holds the right text.
    """
    num_paragraphs = min(options.num_paragraphs, encoded.num_with_questions)
    if not options.validation_questions or not num_paragraphs:
        return {}
    was_training = model.training
    model.eval()
    sums = defaultdict[str, float](float)
    per_batch = num_paragraphs * options.questions_per_paragraph
    batches = max(1, round(options.validation_questions / per_batch))
    for mode in MODES:
        rng = np.random.default_rng(options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        config = StepConfig(mode=mode, num_documents=options.max_documents, wrong_text_fraction=0.0)
        for _ in range(batches):
            batch = sample_batch(
                encoded,
                neighbours,
                rng=rng,
                num_paragraphs=num_paragraphs,
                questions_per_paragraph=options.questions_per_paragraph,
                max_tokens=options.max_tokens,
                max_answer_tokens=options.max_answer_tokens,
            )
            losses = training_loss(model, batch, config, generator=generator)
            for name, loss in losses.items():
                if name != "total":
                    sums[f"{name}_{mode}"] += float(loss)
    model.train(was_training)
    return {name: total / batches for name, total in sums.items()}
