"""From questions to what the model reads: which chunks, as modulations, as text, or both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mac_core.engine.newer import newer_first, num_candidates
from mac_core.engine.ports import AnsweringModel
from mac_core.memory.bank import BankEntry, BankView, MemoryBank, Selected
from mac_core.networks.model import AnswerRequest
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
        """The chunks of each question, best first; none for mode `none`.

        Args:
            views: by question.
            now: seconds since the epoch; what has expired by then takes no part.
        """
        queries = self._queries(questions, views)
        return [
            self._select_one(question, view, query, now=now)
            for question, view, query in zip(questions, views, queries, strict=True)
        ]

    def requests(
        self, questions: Sequence[Question], selected: Sequence[Sequence[Selected]]
    ) -> list[AnswerRequest]:
        """One request for each question; a chunk that several read is unpacked once."""
        unpacked: dict[BankEntry, Modulation] = {}
        return [
            self._request(question, chosen, unpacked)
            for question, chosen in zip(questions, selected, strict=True)
        ]

    def _queries(self, questions: Sequence[Question], views: Sequence[BankView]) -> Tensor:
        """Selection queries `(batch, d_key)`; zeros where none is needed."""
        queries = torch.zeros(len(questions), self._config.d_key)
        dense = [
            i
            for i, (question, view) in enumerate(zip(questions, views, strict=True))
            if question.mode in ("memory", "hybrid") and view.entries
        ]
        if dense:
            encoded = self._model.encode_questions([questions[i].text for i in dense])
            queries[dense] = encoded.to(queries)
        return queries

    def _select_one(
        self, question: Question, view: BankView, query: Tensor, *, now: float
    ) -> list[Selected]:
        if question.mode == "none":
            return []
        top_k = self._config.top_k if question.top_k is None else question.top_k
        is_text = question.mode == "text"
        top_k = self._config.text_top_k if is_text else top_k
        selected = self._bank.select(
            view,
            query=query,
            text=question.text,
            top_k=num_candidates(top_k, most=self._config.num_candidates),
            filter=question.filter,
            as_of=question.as_of,
            now=now,
            mode="bm25" if is_text else "fused",
        )
        return newer_first(selected, top_k=top_k)

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
        texts = selected[: self._config.text_top_k] if question.mode in ("text", "hybrid") else ()
        return AnswerRequest(
            question=question.text,
            modulations=tuple(unpacked[chosen.entry] for chosen in read),
            aggregation_keys=tuple(chosen.entry.aggregation_keys for chosen in read),
            log_prior=tuple(chosen.log_prior for chosen in read),
            texts=tuple(chosen.entry.text for chosen in texts),
            max_new_tokens=question.max_new_tokens,
            temperature=question.temperature,
            seed=question.seed,
        )
