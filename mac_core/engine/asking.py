"""Answering a batch of questions: one view of each bank, selection, the model, and outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mac_core.config import EngineConfig
from mac_core.engine.batch_cap import BatchCap, is_out_of_memory
from mac_core.engine.confidence import Judged
from mac_core.engine.learning import engine_failed
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.readings import Reading, judge_each, parts_to_read, surest
from mac_core.engine.scheduler import Behind
from mac_core.engine.selecting import Selecting
from mac_core.engine.tickets import QuestionTicket
from mac_core.engine.validation import check_question
from mac_core.errors import BankBehind, InvalidInput, NotReady, QuestionTooLong
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.networks.model import Generated
from mac_core.types import Answer, EngineObserver, Question, Source, Timings, Usage

PHASES = ("select", "aggregate", "prefill", "decode")


@dataclass(kw_only=True, eq=False)
class Row:
    """One question of a batch and what has become of it."""

    ticket: QuestionTicket
    view: BankView
    stopped: Exception | None = None  # why its row ended between two decode steps

    @property
    def question(self) -> Question:
        return self.ticket.question


@dataclass(kw_only=True, eq=False)
class PhaseClock:
    """Seconds by phase of one batch."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def ms(self, phase: str) -> float:
        return 1000 * self.seconds.get(phase, 0.0)


class Asking:
    """Answers questions from what the bank holds. Engine thread only; never writes."""

    def __init__(
        self,
        *,
        model: AnsweringModel,
        bank: MemoryBank,
        config: EngineConfig,
        observer: EngineObserver,
        park: Callable[[QuestionTicket, Behind], None],
        used: Callable[[str, Sequence[Source]], None] = lambda namespace, sources: None,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            park: set a question aside until its bank has the version that it waits for.
            used: told what an answer from a namespace rests on.
        """
        self._used = used
        self._model = model
        self._bank = bank
        self._observer = observer
        self._park = park
        self._is_stopping = is_stopping
        self._clock = clock
        self._now = now
        self._selecting = Selecting(model, bank)
        self._cap = BatchCap(config.max_batch_questions)
        self._max_read_chunks = config.max_read_chunks

    def answer(self, tickets: Sequence[QuestionTicket]) -> None:
        """Answer a batch; each ticket is settled or parked when this returns."""
        taken_at = self._clock()
        views: dict[str, BankView] = {}  # ONE for each namespace, whatever is retried
        rows: list[Row] = []
        for ticket in tickets:
            ticket.taken_at = taken_at
            namespace = ticket.question.namespace
            view = views.setdefault(namespace, self._bank.view(namespace))
            if self._accepts(ticket):
                self._observer.observe_phase("queue", taken_at - ticket.submitted_at)
                rows.append(Row(ticket=ticket, view=view))
        while rows:
            part, rows = rows[: self._cap.value], rows[self._cap.value :]
            self._attempt(part)

    def _accepts(self, ticket: QuestionTicket) -> bool:
        """Whether the question can be answered now; if not it is failed or parked."""
        question = ticket.question
        try:
            check_question(question)
            num_tokens = len(self._model.tokenizer.encode(question.text))
            if num_tokens > self._model.config.max_question_tokens:
                limit = self._model.config.max_question_tokens
                raise QuestionTooLong(num_tokens=num_tokens, max_tokens=limit)
        except Exception as error:
            self._fail(ticket, engine_failed(error, doing="reading the question"))
            return False
        if self._behind(question) is not None:
            self._park(ticket, lambda: self._behind(question))
            return False
        return True

    def _behind(self, question: Question) -> BankBehind | None:
        """What its bank still lacks; None: it has the version that the question asks for."""
        wanted, version = question.min_version, self._bank.version(question.namespace)
        if wanted is None or version >= wanted:
            return None
        return BankBehind(bank_version=version, min_version=wanted)

    def _attempt(self, rows: Sequence[Row]) -> None:
        """Answer the rows together; on failure in smaller parts, so that a bad row fails alone."""
        rows = [row for row in rows if self._is_live(row)]
        if not rows:
            return
        failure: Exception | None = None
        try:
            self._observer.observe_batch("questions", len(rows))
            answers = self._answer(rows)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames would hold the batch's tensors
        if failure is None:
            self._cap.grow(len(rows))
            for row, answer in zip(rows, answers, strict=True):
                self._settle(row, answer)
            return
        for smaller in self._divide(rows, failure):
            self._attempt(smaller)

    def _divide(self, rows: Sequence[Row], failure: Exception) -> list[Sequence[Row]]:
        num_readings = self._selecting.num_readings(rows[0].question)
        if len(rows) == 1 and is_out_of_memory(failure) and min(num_readings, self._cap.value) > 1:
            self._cap.halve(min(num_readings, self._cap.value))  # its readings one after another
            return [rows]
        if len(rows) == 1:
            self._fail(rows[0].ticket, engine_failed(failure, doing="answering"))
            return []
        if is_out_of_memory(failure):
            self._cap.halve(len(rows))
            middle = len(rows) // 2
            return [rows[:middle], rows[middle:]]
        return [[row] for row in rows]

    def _is_live(self, row: Row) -> bool:
        if row.ticket.is_cancelled:
            return False
        if self._is_stopping():
            self._fail(row.ticket, NotReady("the engine was stopped"))
            return False
        if row.ticket.has_expired(self._clock()):
            self._fail(row.ticket, row.ticket.deadline_exceeded("in the queue"))
            return False
        return True

    def _answer(self, rows: Sequence[Row]) -> list[Answer]:
        phases = PhaseClock()
        began = self._clock()
        questions = [row.question for row in rows]
        selected = self._selecting.select(questions, [row.view for row in rows], now=self._now())
        readings = self._selecting.readings(questions, selected)
        self._check_widths(readings)
        phases.add("select", self._clock() - began)
        judged, generated = self._generate(rows, readings, phases)
        for phase in PHASES:
            self._observer.observe_phase(phase, phases.seconds.get(phase, 0.0))
        answers = [judged[number] for number in surest(readings, judged)]
        usages = _usages(len(rows), readings, generated)
        return [
            self._to_answer(row, answer, usage, phases)
            for row, answer, usage in zip(rows, answers, usages, strict=True)
        ]

    def _check_widths(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            if len(reading.selected) > self._max_read_chunks:
                raise InvalidInput(
                    f"{len(reading.selected)} chunks would be read at once, the limit is "
                    f"{self._max_read_chunks} (MAC_MAX_READ_CHUNKS): give a smaller top_k, not 0"
                )

    def _generate(
        self, rows: Sequence[Row], readings: Sequence[Reading], phases: PhaseClock
    ) -> tuple[list[Judged], list[Generated]]:
        """By reading; as many at once as questions are, and as memory has room for."""
        judged, generated = list[Judged](), list[Generated]()
        questions = [row.question for row in rows]
        for part in parts_to_read(
            readings, max_readings=self._cap.value, max_chunks=self._max_read_chunks
        ):
            began = self._clock()
            requests = self._selecting.requests(questions, part)  # unpacked for this part alone
            phases.add("select", self._clock() - began)
            places = [reading.place for reading in part]
            made = self._model.answer(
                requests,
                should_stop=lambda index, places=places: self._stops(rows[places[index]]),  # type: ignore[misc]
                observe=phases.add,
            )
            if len(made) != len(part):
                raise RuntimeError(f"{len(part)} readings, {len(made)} answers")
            generated += made
            judged += judge_each(self._model.config.confidence, part, requests, made)
        return judged, generated

    def _stops(self, row: Row) -> bool:
        """Whether the row ends now, between two decode steps."""
        if row.ticket.has_expired(self._clock()):
            row.stopped = row.ticket.deadline_exceeded("while the answer was written")
        elif self._is_stopping():
            row.stopped = NotReady("the engine was stopped")
        return row.stopped is not None or row.ticket.is_cancelled

    def _to_answer(self, row: Row, judged: Judged, usage: Usage, phases: PhaseClock) -> Answer:
        judged = judged.withheld_below(row.question.min_confidence)
        ticket = row.ticket
        self._used(row.question.namespace, judged.sources)
        return Answer(
            text=judged.text,
            confidence=judged.confidence,
            sources=judged.sources,
            bank_version=row.view.version,
            usage=usage,
            timings_ms=Timings(
                queue=1000 * (ticket.taken_at - ticket.submitted_at),
                **{phase: phases.ms(phase) for phase in PHASES},
            ),
            model=self._model.config.name,
        )

    def _settle(self, row: Row, answer: Answer) -> None:
        if row.stopped is not None:
            self._fail(row.ticket, row.stopped)
            return
        self._observer.observe_phase("total", self._clock() - row.ticket.submitted_at)
        row.ticket.resolve(answer)

    def _fail(self, ticket: QuestionTicket, error: Exception) -> None:
        self._observer.observe_phase("total", self._clock() - ticket.submitted_at)
        ticket.fail(error)


def _usages(
    num_questions: int, readings: Sequence[Reading], generated: Sequence[Generated]
) -> list[Usage]:
    """Of each question: all of its readings together."""
    usages = [Usage(prompt_tokens=0, prefix_tokens=0, completion_tokens=0)] * num_questions
    for reading, made in zip(readings, generated, strict=True):
        before = usages[reading.place]
        usages[reading.place] = Usage(
            prompt_tokens=before.prompt_tokens + made.num_prompt_tokens,
            prefix_tokens=before.prefix_tokens + made.num_prefix_tokens,
            completion_tokens=before.completion_tokens + made.num_completion_tokens,
        )
    return usages
