"""From questions to what the model reads: which chunks, as modulations, as text, or both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mac_core.engine.newer import newer_first, num_candidates
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.ranking import late_scores, rank
from mac_core.engine.readings import Reading, readings_of
from mac_core.memory.bank import BankEntry, BankView, MemoryBank, Selected
from mac_core.networks.model import AnswerRequest
from mac_core.networks.values import QuestionEncoding
from mac_core.types import Modulation, Question


class Selecting:
    """Chooses chunks for questions and makes the model's requests. Engine thread only."""

    def __init__(self, model: AnsweringModel, bank: MemoryBank) -> None:
        self._model = model
        self._bank = bank
        self._config = model.config.selection

    def select(
        self, questions: Sequence[Question], views: Sequence[BankView], *, now: float
    ) -> list[list[Selected]]:
        """The chunks of each question, of all its readings, best first; none for mode `none`.

        Args:
            views: by question.
            now: seconds since the epoch; what has expired by then takes no part.
        """
        encoded = self._encode(questions, views)
        return [
            self._select_one(question, view, asked, now=now)
            for question, view, asked in zip(questions, views, encoded, strict=True)
        ]

    def readings(
        self, questions: Sequence[Question], selected: Sequence[Sequence[Selected]]
    ) -> list[Reading]:
        """What is read together: of each question one or more, in the order of the questions."""
        made = list[Reading]()
        for place, (question, chosen) in enumerate(zip(questions, selected, strict=True)):
            together = self._together(question)
            if together:
                chosen = chosen[: together * self.num_readings(question)]
            made += readings_of(place, chosen, together=together)
        return made

    def requests(
        self, questions: Sequence[Question], readings: Sequence[Reading]
    ) -> list[AnswerRequest]:
        """One request for each reading; a chunk that several read is unpacked once."""
        unpacked: dict[BankEntry, Modulation] = {}
        return [
            self._request(questions[reading.place], reading.selected, unpacked)
            for reading in readings
        ]

    def _together(self, question: Question) -> int:
        """How many chunks one reading has; 0: all of the bank."""
        if question.mode == "text":
            return self._config.text_top_k
        return self._config.top_k if question.top_k is None else question.top_k

    def num_readings(self, question: Question) -> int:
        """How many there may be of one question."""
        return question.num_readings or self._config.num_readings

    def _encode(
        self, questions: Sequence[Question], views: Sequence[BankView]
    ) -> list[QuestionEncoding | None]:
        """Each question as selection reads it; None where it reads none."""
        encoded: list[QuestionEncoding | None] = [None] * len(questions)
        dense = [
            i
            for i, (question, view) in enumerate(zip(questions, views, strict=True))
            if question.mode in ("memory", "hybrid") and view.entries
        ]
        if dense:
            together = self._model.encode_questions([questions[i].text for i in dense])
            for row, i in enumerate(dense):
                encoded[i] = together.row(row)
        return encoded

    def _select_one(
        self, question: Question, view: BankView, asked: QuestionEncoding | None, *, now: float
    ) -> list[Selected]:
        """Candidates of the whole bank, then the best of them; `asked` is None in mode text."""
        config = self._config
        if question.mode == "none" or not view.entries:
            return []
        top_k, num_readings = self._together(question), self.num_readings(question)
        ranks_again = asked is not None and config.late_scale > 0
        wanted = num_candidates(top_k * num_readings, most=config.num_candidates)
        if ranks_again and top_k:
            wanted = max(top_k * num_readings, config.num_candidates)
        candidates = self._bank.select(
            view,
            query=torch.zeros(config.d_key) if asked is None else asked.selection_query[0],
            text=question.text,
            top_k=wanted,
            filter=question.filter,
            as_of=question.as_of,
            now=now,
            mode="bm25" if asked is None else "fused",
        )
        if asked is not None and ranks_again and candidates:
            late = late_scores(self._model, asked, candidates)
            candidates = rank(candidates, late, late_scale=config.late_scale)
        return newer_first(candidates, top_k=top_k, num_readings=num_readings)

    def _request(
        self,
        question: Question,
        selected: Sequence[Selected],
        unpacked: dict[BankEntry, Modulation],
    ) -> AnswerRequest:
        read = selected if question.mode in ("memory", "hybrid") else ()
        for chosen in read:
            if chosen.entry not in unpacked:
                unpacked[chosen.entry] = chosen.entry.stored.unpack()
        num_texts = self._config.text_top_k
        texts = {"text": selected[:num_texts], "hybrid": selected}.get(question.mode, ())
        return AnswerRequest(
            question=question.text,
            modulations=tuple(unpacked[chosen.entry] for chosen in read),
            aggregation_keys=tuple(chosen.entry.aggregation_keys for chosen in read),
            log_prior=tuple(chosen.log_prior for chosen in read),
            texts=tuple(chosen.entry.text for chosen in texts),
            num_texts=num_texts,
            max_new_tokens=question.max_new_tokens,
            temperature=question.temperature,
            seed=question.seed,
        )
