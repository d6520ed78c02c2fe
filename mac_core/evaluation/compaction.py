"""What smaller modulations cost: the same questions of one bank, stored in ever fewer bytes.

Every setting starts from what float32 holds, and is compacted exactly as `mac bank compact` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mac_core.engine.compaction import sampled_slots
from mac_core.engine.ports import AnsweringModel
from mac_core.errors import InvalidInput
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import Track, publish, untracked
from mac_core.evaluation.learned_cache import DOCUMENTS_AT_ONCE, LearnedCache, learn_part
from mac_core.evaluation.metrics import (
    Estimate,
    f1,
    normal,
    paired_difference,
    strict_em,
    wilson,
)
from mac_core.evaluation.parts import parts_of
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import Origin, Prediction
from mac_core.memory.bank import MemoryBank
from mac_core.memory.codebook import Codebook, train_codebook
from mac_core.memory.compaction import Compaction, compact_record, frame_head
from mac_core.memory.record_format import encode_record
from mac_core.memory.records import DocumentRecord
from mac_core.types import Document

MODE: EvaluationMode = "memory"  # the one that reads nothing but modulations


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionTask:
    """What is asked of which documents, and how they are stored; the first is the baseline."""

    documents: Sequence[Document]
    questions: Sequence[SquadQuestion]
    settings: Sequence[Compaction]
    origin: Origin

    def __post_init__(self) -> None:
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise InvalidInput(f"{len(self.settings)} settings, or one of them named twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingResult:
    """One way of storing the bank, over all questions."""

    setting: Compaction
    modulation_bytes: float  # of a document, mean
    record_bytes: float  # the same with text, keys to find it by, and header
    codebook_bytes: int  # once for all documents
    f1: Estimate
    strict_em: Estimate
    f1_gain: Estimate  # over the baseline, paired by question; below 0: a loss
    em_gain: Estimate
    same_answers: float  # share of answers that equal the baseline's, in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionResult:
    """Every setting, in the order asked for."""

    settings: tuple[SettingResult, ...]
    num_documents: int
    num_questions: int
    origin: Origin


def run_compaction(
    model: AnsweringModel,
    task: CompactionTask,
    *,
    cache: LearnedCache,
    log: AnswerLog,
    track: Track = untracked,
) -> CompactionResult:
    """Learn in float32, then store and ask in every setting.

    Raises:
        InvalidInput: a document that cannot be learned, or a method that does not go with the
            model's slots.
    """
    records = _learned(model, task, cache=cache, track=track)
    results: list[SettingResult] = []
    baseline: list[Prediction] = []
    for setting in task.settings:
        book = _codebook(records, setting)
        stored = _compacted(model, records, setting, book, track=track)
        predictions = _answers(model, task, stored, setting, log=log, track=track)
        baseline = baseline or predictions
        results.append(
            _scored(model, task, setting, stored, book, predictions=predictions, baseline=baseline)
        )
    return CompactionResult(
        settings=tuple(results),
        num_documents=len(records),
        num_questions=len(task.questions),
        origin=task.origin,
    )


def _learned(
    model: AnsweringModel, task: CompactionTask, *, cache: LearnedCache, track: Track
) -> list[DocumentRecord]:
    records: list[DocumentRecord] = []
    advance = track("learn", len(task.documents))
    for part in parts_of(task.documents, DOCUMENTS_AT_ONCE):
        learned = learn_part(model, part, cache=cache, batch_size=task.origin.batch_size)
        records += learned.records
        advance(len(part))
    return records


def _codebook(records: Sequence[DocumentRecord], setting: Compaction) -> Codebook | None:
    if setting.method != "codebook":
        return None
    slots = sampled_slots(iter(records))
    return train_codebook(slots, num_parts=setting.num_parts(slots.shape[1]))


def _compacted(
    model: AnsweringModel,
    records: Sequence[DocumentRecord],
    setting: Compaction,
    codebook: Codebook | None,
    *,
    track: Track,
) -> list[DocumentRecord]:
    advance = track(f"compact {setting.name}", len(records))
    num_head = frame_head(model.layout)
    stored = []
    for record in records:
        stored.append(compact_record(record, setting, codebook=codebook, num_head=num_head))
        advance(1)
    return stored


def _answers(
    model: AnsweringModel,
    task: CompactionTask,
    stored: Sequence[DocumentRecord],
    setting: Compaction,
    *,
    log: AnswerLog,
    track: Track,
) -> list[Prediction]:
    bank = MemoryBank(model.config.selection, device=task.origin.device)
    asker = Asker(
        model=model,
        bank=bank,
        view=publish(model, bank, stored, version=1),
        batch_size=task.origin.batch_size,
        top_k=task.origin.top_k,
        num_readings=task.origin.num_readings,
        max_new_tokens=task.origin.max_new_tokens,
    )
    advance = track(f"ask {setting.name}", len(task.questions))
    return asker.answer_all(MODE, task.questions, log=log, log_name=setting.name, advance=advance)


def _scored(
    model: AnsweringModel,
    task: CompactionTask,
    setting: Compaction,
    stored: Sequence[DocumentRecord],
    codebook: Codebook | None,
    *,
    predictions: Sequence[Prediction],
    baseline: Sequence[Prediction],
) -> SettingResult:
    def pairs(made: Sequence[Prediction]) -> list[tuple[str, tuple[str, ...]]]:
        return [(p.answer, q.references) for q, p in zip(task.questions, made, strict=True)]

    mine, first = pairs(predictions), pairs(baseline)
    overlaps, hits = [f1(*pair) for pair in mine], [strict_em(*pair) for pair in mine]
    same = [one.answer == other.answer for one, other in zip(predictions, baseline, strict=True)]
    encoded = (encode_record(record, model.fingerprint) for record in stored)
    return SettingResult(
        setting=setting,
        modulation_bytes=fmean(record.num_bytes for record in stored),
        record_bytes=fmean(len(header.encode()) + len(payload) for header, payload in encoded),
        codebook_bytes=0 if codebook is None else codebook.num_bytes,
        f1=normal(overlaps),
        strict_em=wilson(hits),
        f1_gain=paired_difference(overlaps, [f1(*pair) for pair in first]),
        em_gain=paired_difference(hits, [strict_em(*pair) for pair in first]),
        same_answers=fmean(same),
    )
