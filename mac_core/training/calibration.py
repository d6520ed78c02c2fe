"""After training: how much dense and BM25 scores say, how many documents to aggregate, and how
sure an answer is.

Fitted on held-out train articles that no step has seen. The scales make the selection's softmax a
probability: the likelihood of the right document, all of its chunks together, among all of the
held-out bank is maximal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mac_core.config import ConfidenceConfig, SelectionConfig
from mac_core.engine.ranking import keys_of
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import learn_documents
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import score_mode
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.index import Bm25Index
from mac_core.networks.model import MacModel
from mac_core.networks.refine import RefineAggregation, stack_late_keys
from mac_core.training.confidence import ConfidenceQuality, calibrate_confidence
from mac_core.training.held_out import HeldOut

TOP_KS = (1, 2, 4, 8)
SLACK = 1.0  # points of F1: the standard error of a difference at a few hundred questions
PULL = 1e-3
BATCH_SIZE = 8  # questions matched with every token of the bank at once
ScaleName = Literal["dense_scale", "bm25_scale", "late_scale"]
BEGIN_SCALES: dict[ScaleName, float] = {"dense_scale": 20.0, "bm25_scale": 0.5, "late_scale": 0.5}
MAX_LOG_SCALE = 7.0  # no score needs a factor of over a thousand


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was chosen, and the figures it was chosen by."""

    selection: SelectionConfig
    f1_by_top_k: dict[int, float]  # memory, held-out, percent
    f1_by_mode: dict[str, float]  # at the chosen top_k, percent
    confidence: ConfidenceConfig
    confidence_quality: dict[str, ConfidenceQuality]  # by mode
    num_documents: int
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A model before a bank of held-out documents."""

    model: MacModel
    bank: MemoryBank
    view: BankView

    def f1(
        self,
        mode: EvaluationMode,
        questions: Sequence[SquadQuestion],
        selection: SelectionConfig,
    ) -> float:
        """Mean F1 in percent of one mode under these settings."""
        self.model.config = replace(self.model.config, selection=selection)
        bank = self.bank.with_selection(selection)
        asker = Asker(model=self.model, bank=bank, view=self.view, batch_size=32)
        predictions = asker.answer_all(mode, questions, log=AnswerLog(None, run={}))
        return round(100.0 * score_mode(questions, predictions).f1.mean, 2)


def calibrate(model: MacModel, held_out: HeldOut, *, num_questions: int, seed: int) -> Calibration:
    """Fit the scales, take the `top_k` whose answers score best, then fit the confidence.

    Args:
        num_questions: that scores are measured on; four times as many fit scales and confidence.
    """
    model.eval()
    fit = held_out.sample(4 * num_questions, seed=seed)
    bank = MemoryBank(model.config.selection)
    view = learn_documents(model, bank, held_out.documents, batch_size=16)
    scores, right = scores_of(model, view, fit)
    reader = Reader(model=model, bank=bank, view=view)
    scored = held_out.sample(num_questions, seed=seed + 1)
    scales: Any = fit_scales(scores, right)
    selection = replace(model.config.selection, **scales)
    by_k: dict[int, float] = {}
    for top_k in TOP_KS:
        by_k[top_k] = reader.f1("memory", scored, replace(selection, top_k=top_k))
    best = fewest(by_k)
    selection = replace(selection, top_k=best)
    modes: tuple[EvaluationMode, ...] = ("none", "text", "hybrid", "oracle")
    by_mode: dict[str, float] = {mode: reader.f1(mode, scored, selection) for mode in modes}
    confidence, quality = calibrate_confidence(
        model,
        bank.with_selection(selection),
        held_out,
        num_questions=4 * num_questions,
        seed=seed,
    )
    model.config = replace(model.config, selection=selection, confidence=confidence)
    return Calibration(
        selection=selection,
        confidence=confidence,
        confidence_quality=quality,
        f1_by_top_k=by_k,
        f1_by_mode={"memory": by_k[best], **by_mode},
        num_documents=len(held_out.documents),
        num_questions=len(scored),
    )


def fewest(f1_by_top_k: Mapping[int, float]) -> int:
    """The least `top_k` that is within `SLACK` of the best: every document read costs time."""
    enough = max(f1_by_top_k.values()) - SLACK
    return min(top_k for top_k, f1 in f1_by_top_k.items() if f1 >= enough)


def scores_of(
    model: MacModel, view: BankView, questions: Sequence[SquadQuestion]
) -> tuple[dict[ScaleName, Tensor], Tensor]:
    """What selection adds up, and which entries are right, each `(questions, bank_size)`.

    The first has scores for each scale of `SelectionConfig` that this bundle uses. Of a document in
    several chunks every entry is right: nobody says which of them answers.
    """
    rows: dict[str, list[int]] = {}
    index = Bm25Index()
    for row, entry in enumerate(view.entries):
        rows.setdefault(entry.document_id, []).append(row)
        index.add(row, entry.text)
    bm25 = torch.zeros(len(questions), len(view.entries))
    for number, question in enumerate(questions):
        for row, score in index.search(question.text):
            bm25[number, row] = score
    queries, late = list[Tensor](), list[Tensor]()
    network = model.aggregation
    matcher = network.late if isinstance(network, RefineAggregation) else None
    if matcher is not None:  # laid out once for all questions
        stacked, mask = stack_late_keys([keys_of(model, entry) for entry in view.entries])
    for first in range(0, len(questions), BATCH_SIZE):
        batch = questions[first : first + BATCH_SIZE]
        encoded = model.encode_questions([question.text for question in batch])
        queries.append(encoded.selection_query.float().cpu())
        if matcher is not None:
            with torch.inference_mode():
                late.append(matcher(encoded, stacked, mask).cpu())
    right = torch.zeros(len(questions), len(view.entries), dtype=torch.bool)
    for number, question in enumerate(questions):
        right[number, rows[question.document_id]] = True
    scores: dict[ScaleName, Tensor] = {
        "dense_scale": torch.cat(queries) @ view.selection_keys.T,
        "bm25_scale": bm25,
    }
    if late:
        scores["late_scale"] = torch.cat(late)
    return scores, right


def fit_scales(scores: Mapping[ScaleName, Tensor], right: Tensor) -> dict[ScaleName, float]:
    """Scales whose weighted sum of scores, in a softmax, gives the right documents most likelihood.

    A document's likelihood is that of all its entries together. A weak pull towards where the
    search begins keeps the scales finite where scores alone separate.

    Args:
        scores: by scale, `(questions, bank_size)`.
        right: `(questions, bank_size)`, bool, at least one True of each question.
    """
    columns = torch.stack([*scores.values()])  # (scales, questions, bank_size)
    begin = torch.tensor([BEGIN_SCALES[name] for name in scores]).log()
    log_scales = begin.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([log_scales], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scales = log_scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
        logits = torch.einsum("s,sqn->qn", scales, columns)  # (questions, bank_size)
        rights = logits.masked_fill(~right, -math.inf).logsumexp(dim=1)
        loss = (logits.logsumexp(dim=1) - rights).mean()
        loss = loss + PULL * (log_scales - begin).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scales = log_scales.detach().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    return {name: round(scale, 4) for name, scale in zip(scores, scales.tolist(), strict=True)}
