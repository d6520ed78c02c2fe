"""Facts that change: two documents contradict each other, and the later published one should win.

Beside each pair stands a document on another subject in the same words, because a rule that lets
the newer win could let it win where there is no conflict. The same questions are asked of the same
documents without dates, to see what the dates do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from mac_core.engine.offline import Advance
from mac_core.engine.ports import AnsweringModel
from mac_core.engine.selecting import Selecting
from mac_core.errors import InvalidInput
from mac_core.evaluation.abstention import answers_of
from mac_core.evaluation.learned import Track, learn_documents, untracked
from mac_core.evaluation.metrics import Estimate, normalize, wilson
from mac_core.evaluation.parts import parts_of
from mac_core.evaluation.results import Origin
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.types import Document, Mode, Question

LATEST, AS_OF, UNDATED = "latest", "as of", "without dates"
OLDER, NEWER, OTHER = "older", "newer", "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One document and what it answers."""

    document: Document
    answer: str

    @classmethod
    def parse(cls, document_id: str, values: dict[str, Any]) -> Self:
        published_at = datetime.fromisoformat(values["published_at"]).timestamp()
        document = Document(id=document_id, text=values["text"], published_at=published_at)
        return cls(document=document, answer=values["answer"])

    @property
    def published_at(self) -> float:
        return self.document.published_at or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A fact that changed, and one on another subject that did not."""

    question: str
    older: Statement
    newer: Statement
    other_question: str
    other: Statement

    @property
    def statements(self) -> tuple[Statement, ...]:
        return self.older, self.newer, self.other

    @property
    def between(self) -> float:
        """A moment at which only the older one of the two was published."""
        return (self.older.published_at + self.newer.published_at) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictsResult:
    """What was said in one mode, asked in one way; shares of the pairs."""

    mode: str
    asked: str  # latest, as of, without dates; with "other" for the question on that subject
    says: dict[str, Estimate]  # by whose answer it is: older, newer, other, neither
    first: dict[str, Estimate]  # by whose document was selected first
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictsEvaluation:
    """Every mode, asked in every way."""

    results: tuple[ConflictsResult, ...]
    num_documents: int
    origin: Origin


def load_conflicts(path: Path) -> list[Conflict]:
    """
    Raises:
        InvalidInput: a line is not as `deploy/demo/conflicts.jsonl` has them, or there is none.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise InvalidInput(f"{path.name} is empty")
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def run_conflicts(
    model: AnsweringModel,
    conflicts: Sequence[Conflict],
    *,
    modes: Sequence[Mode],
    origin: Origin,
    background: Sequence[Document] = (),
    track: Track = untracked,
) -> ConflictsEvaluation:
    """Learn everything with its dates and without, and ask.

    Args:
        background: further documents in the bank, which nothing asks of.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    documents = [s.document for conflict in conflicts for s in conflict.statements]
    results: list[ConflictsResult] = []
    for with_dates in (True, False):
        held = documents if with_dates else [replace(d, published_at=None) for d in documents]
        bank = MemoryBank(model.config.selection, device=origin.device)
        view = learn_documents(
            model, bank, [*held, *background], batch_size=origin.batch_size, track=track
        )
        ways = (LATEST, AS_OF) if with_dates else (UNDATED,)
        asker = _Asker(model=model, bank=bank, view=view, origin=origin)
        for mode in modes:
            for asked in (*ways, f"{ways[0]}, {OTHER}"):
                advance = track(f"{mode} {asked}", len(conflicts))
                results.append(asker.ask(conflicts, mode, asked, advance))
    return ConflictsEvaluation(
        results=tuple(results), num_documents=view.num_documents, origin=origin
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asker:
    """Asks one bank view."""

    model: AnsweringModel
    bank: MemoryBank
    view: BankView
    origin: Origin

    def ask(
        self, conflicts: Sequence[Conflict], mode: Mode, asked: str, advance: Advance
    ) -> ConflictsResult:
        said: list[str] = []
        first: list[str] = []
        for part in parts_of(conflicts, self.origin.batch_size):
            questions = [self._question(conflict, mode, asked) for conflict in part]
            selecting = Selecting(self.model, self.bank)
            selected = selecting.select(questions, [self.view] * len(questions), now=0.0)
            answers = answers_of(self.model, selecting, questions, selected)
            for conflict, chosen, judged in zip(part, selected, answers, strict=True):
                said.append(whose_answer(conflict, judged.text or ""))
                name = chosen[0].entry.document_id if chosen else ""
                first.append(_whose_document(conflict, name))
            advance(len(part))
        return ConflictsResult(
            mode=mode,
            asked=asked,
            says={who: wilson([one == who for one in said]) for who in WHOSE},
            first={who: wilson([one == who for one in first]) for who in WHOSE},
            num_questions=len(conflicts),
        )

    def _question(self, conflict: Conflict, mode: Mode, asked: str) -> Question:
        return Question(
            text=conflict.other_question if OTHER in asked else conflict.question,
            mode=mode,
            top_k=self.origin.top_k,
            num_readings=self.origin.num_readings,
            max_new_tokens=self.origin.max_new_tokens,
            as_of=conflict.between if asked == AS_OF else None,
        )


WHOSE = (NEWER, OLDER, OTHER, "neither")


def whose_answer(conflict: Conflict, answer: str) -> str:
    """Whose answer is in `answer`, after SQuAD's normalisation; neither where two are, or none."""
    words = f" {normalize(answer)} "
    pairs = ((NEWER, conflict.newer), (OLDER, conflict.older), (OTHER, conflict.other))
    found = [who for who, statement in pairs if f" {normalize(statement.answer)} " in words]
    return found[0] if len(found) == 1 else "neither"


def _whose_document(conflict: Conflict, document_id: str) -> str:
    pairs = ((NEWER, conflict.newer), (OLDER, conflict.older), (OTHER, conflict.other))
    found = [who for who, statement in pairs if statement.document.id == document_id]
    return found[0] if found else "neither"


def _parse(path: Path, number: int, line: str) -> Conflict:
    try:
        values = json.loads(line)
        name = values["id"]
        conflict = Conflict(
            question=values["question"],
            older=Statement.parse(f"{name}/{OLDER}", values[OLDER]),
            newer=Statement.parse(f"{name}/{NEWER}", values[NEWER]),
            other_question=values[OTHER]["question"],
            other=Statement.parse(f"{name}/{OTHER}", values[OTHER]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path.name}:{number} is not a conflict: {error!r}") from error
    if conflict.older.published_at >= conflict.newer.published_at:
        raise InvalidInput(f"{path.name}:{number}: the newer document is not the later one")
    return conflict
