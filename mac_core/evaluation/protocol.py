"""SQuAD-Seq (arXiv 2403.04317, section 4): every document into the bank, then every question.

Answers come from the engine's own selecting and the model's own answering, called without its
thread: what is measured is what is served. Knows nothing of files and terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, get_args

import torch

from mac_core.engine.offline import Advance
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.selecting import Selecting
from mac_core.evaluation.abstention import answers_of
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import DOCUMENT_KEY
from mac_core.evaluation.parts import parts_of
from mac_core.evaluation.results import RECALL_DEPTHS, Prediction
from mac_core.memory.bank import BankEntry, BankView, MemoryBank, Selected
from mac_core.types import Mode, Question

EvaluationMode = Literal["none", "text", "memory", "hybrid", "oracle", "oracle-text"]
MODES: tuple[EvaluationMode, ...] = get_args(EvaluationMode)


# How documents are chosen, and how the chosen are read. The oracles choose from the right document
# alone; its text is chosen as memory chooses, because BM25 can miss a document entirely.
_SELECTS: dict[EvaluationMode, Mode] = {"oracle": "memory", "oracle-text": "memory"}
_READS: dict[EvaluationMode, Mode] = {"oracle": "memory", "oracle-text": "text"}

# Questions that are put together by the document that each reads first: some articles' worth, so
# that a killed run loses little and the order of the file almost decides.
_WINDOW = 1024

RETRIEVAL_WAYS = ("fused", "dense", "bm25")  # fused: as the engine selects
# Chunks that dense and bm25 look at for the best distinct documents: some documents have several.
_RETRIEVED_CHUNKS = 2 * max(RECALL_DEPTHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A question and what was selected for it."""

    question: SquadQuestion
    asked: Question
    selected: Sequence[Selected]
    seconds: float  # its share of the selecting


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks questions of one bank view. Not thread-safe, as the model is not."""

    model: AnsweringModel
    bank: MemoryBank
    view: BankView
    batch_size: int = 16
    top_k: int | None = None  # None: the bundle's own
    num_readings: int | None = None  # None: the bundle's own
    max_new_tokens: int = 32

    def answer_all(
        self,
        mode: EvaluationMode,
        questions: Sequence[SquadQuestion],
        *,
        log: AnswerLog,
        log_name: str | None = None,
        advance: Advance = lambda amount: None,
    ) -> list[Prediction]:
        """Answer every question that `log` does not hold yet; in the order of `questions`.

        Args:
            log_name: what the log calls these answers; None: the mode's own name.
        """
        name = mode if log_name is None else log_name
        known = log.read(name)
        advance(sum(question.id in known for question in questions))
        waiting = [question for question in questions if question.id not in known]
        # A whole bank selected for every question of a window would not fit.
        for window in parts_of(waiting, self.batch_size if self.top_k == 0 else _WINDOW):
            for batch in parts_of(self._select(mode, window), self.batch_size):
                answered = self._read(mode, batch)
                log.append(name, answered)
                known |= {prediction.question_id: prediction for prediction in answered}
                advance(len(answered))
        return [known[question.id] for question in questions]

    def _select(self, mode: EvaluationMode, questions: Sequence[SquadQuestion]) -> list[_Choice]:
        """What each question reads, in the order in which a batch costs least.

        Where texts are read, questions on the same document go together, beside texts of its
        length: each goes through the base LM once a batch. Elsewhere questions of like length do.
        No answer depends on the batch that it is in.
        """
        selecting = Selecting(self.model, self.bank)
        choices: list[_Choice] = []
        for batch in parts_of(questions, self.batch_size):
            started = perf_counter()
            asked = [self._question(mode, question) for question in batch]
            selected = selecting.select(asked, [self.view] * len(asked), now=0.0)
            seconds = (perf_counter() - started) / len(batch)
            choices += [
                _Choice(question=question, asked=one, selected=chosen, seconds=seconds)
                for question, one, chosen in zip(batch, asked, selected, strict=True)
            ]
        reads_text = _READS.get(mode, mode) in ("text", "hybrid")
        return sorted(choices, key=_first_document if reads_text else _question_length)

    def _read(self, mode: EvaluationMode, choices: Sequence[_Choice]) -> list[Prediction]:
        """Read and spell as the engine does."""
        started = perf_counter()
        questions = [replace(c.asked, mode=_READS.get(mode, c.asked.mode)) for c in choices]
        selected = [choice.selected for choice in choices]
        answers = answers_of(self.model, Selecting(self.model, self.bank), questions, selected)
        seconds = (perf_counter() - started) / len(choices)
        return [
            Prediction(
                question_id=choice.question.id,
                answer=judged.text or "",
                confidence=judged.confidence,
                seconds=choice.seconds + seconds,
                batch_size=self.batch_size,
                num_threads=torch.get_num_threads(),
            )
            for choice, judged in zip(choices, answers, strict=True)
        ]

    def _question(self, mode: EvaluationMode, question: SquadQuestion) -> Question:
        is_oracle = mode in _SELECTS
        return Question(
            text=question.text,
            mode=_SELECTS[mode] if is_oracle else mode,  # type: ignore[arg-type]
            top_k=self.top_k,
            num_readings=self.num_readings,
            max_new_tokens=self.max_new_tokens,
            filter={DOCUMENT_KEY: question.document_id} if is_oracle else {},
        )

    def rank_all(
        self,
        questions: Sequence[SquadQuestion],
        *,
        ways: Sequence[str] = RETRIEVAL_WAYS,
        advance: Advance = lambda amount: None,
    ) -> dict[str, list[int | None]]:
        """By way of retrieval, the right document's rank from 0 for each question; None: missed.

        What the engine does not rank is missed by `fused`, however near it is.
        """
        ranks: dict[str, list[int | None]] = {way: [] for way in ways}
        for batch in parts_of(questions, self.batch_size):
            for way in ways:
                found = self._retrieve(way, batch)
                pairs = zip(batch, found, strict=True)
                ranks[way] += [_rank(question.document_id, entries) for question, entries in pairs]
            advance(len(batch))
        return ranks

    def _retrieve(self, way: str, questions: Sequence[SquadQuestion]) -> list[list[BankEntry]]:
        """The best chunks of each question, best first."""
        texts = [question.text for question in questions]
        if way == "dense":
            keys = self.view.selection_keys
            queries = self.model.encode_questions(texts).selection_query
            cosines = queries.to(keys) @ keys.T  # (batch, bank_size)
            best = cosines.topk(min(_RETRIEVED_CHUNKS, len(keys))).indices.tolist()
            return [[self.view.entries[row] for row in rows] for rows in best]
        if way == "fused":
            ranked = self._num_ranked()
            asked = [
                Question(text=text, mode="memory", top_k=ranked, num_readings=1) for text in texts
            ]
            selecting = Selecting(self.model, self.bank)
            selected = selecting.select(asked, [self.view] * len(asked), now=0.0)
        else:
            selected = self.bank.select_batch(
                self.view,
                queries=torch.zeros(len(texts), self.view.selection_keys.shape[1]),
                texts=texts,
                top_k=_RETRIEVED_CHUNKS,
                filter={},
                as_of=None,
                now=0.0,
                mode="bm25",
            )
        return [[chosen.entry for chosen in row] for row in selected]

    def _num_ranked(self) -> int:
        """How many chunks the engine ranks for one question of this run; 0: the whole bank.

        Asked for as many, it ranks the same ones, and shows them all.
        """
        config = self.model.config.selection
        top_k = config.top_k if self.top_k is None else self.top_k
        num_readings = self.num_readings or config.num_readings
        return max(top_k * num_readings, config.num_candidates) if top_k else 0


def _question_length(choice: _Choice) -> tuple[int, str]:
    return len(choice.question.text), ""


def _first_document(choice: _Choice) -> tuple[int, str]:
    """Length and name of the document that a question reads first."""
    if not choice.selected:
        return 0, ""
    first = choice.selected[0].entry
    return first.num_tokens, first.document_id


def _rank(document_id: str, entries: Sequence[BankEntry]) -> int | None:
    """The document's place among the distinct documents of `entries`."""
    distinct = list(dict.fromkeys(entry.document_id for entry in entries))
    return distinct.index(document_id) if document_id in distinct else None
