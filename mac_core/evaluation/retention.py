"""Retention: the same questions while the bank grows with documents that do not concern them.

The analogue here of the retention that MAC measures (arXiv 2403.04317, section 4): what was learned
first is asked for after more and more has been learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mac_core.engine.ports import AnsweringModel
from mac_core.errors import InvalidInput
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.learned import Track, untracked
from mac_core.evaluation.learned_cache import GrowingBank, LearnedCache
from mac_core.evaluation.metrics import Estimate, f1, normal, paired_ratio, strict_em, wilson
from mac_core.evaluation.protocol import Asker, EvaluationMode
from mac_core.evaluation.results import Origin, score_ranks
from mac_core.types import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is asked, and what the bank grows by."""

    documents: Sequence[Document]  # the first sizes[0] are asked of, the rest come after them
    questions: Sequence[SquadQuestion]  # on the first sizes[0] documents
    sizes: Sequence[int]  # documents in the bank, ascending; the first is the baseline
    modes: Sequence[EvaluationMode]
    origin: Origin

    def __post_init__(self) -> None:
        if list(self.sizes) != sorted(set(self.sizes)) or not self.sizes or self.sizes[0] < 1:
            raise InvalidInput(f"sizes {list(self.sizes)} do not rise from at least 1")
        if self.sizes[-1] > len(self.documents):
            raise InvalidInput(
                f"a bank of {self.sizes[-1]} documents was asked for, "
                f"there are {len(self.documents)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeResult:
    """One mode at one size of the bank."""

    mode: str
    num_documents: int
    f1: Estimate
    strict_em: Estimate
    f1_ratio: Estimate  # to the first size's F1, over the same questions
    recall: dict[int, Estimate]  # the right document among the first k of the fused selection


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionResult:
    """The whole curve, mode by mode, ascending."""

    sizes: tuple[SizeResult, ...]
    num_questions: int
    origin: Origin


def run_retention(
    model: AnsweringModel,
    task: Retention,
    *,
    cache: LearnedCache,
    log: AnswerLog,
    track: Track = untracked,
) -> RetentionResult:
    """Grow the bank from size to size and ask the same questions at each.

    Raises:
        InvalidInput: a document that cannot be learned.
    """
    origin, asked = task.origin, task.questions
    growing = GrowingBank(
        model, cache=cache, batch_size=origin.batch_size, device=origin.device, track=track
    )
    scores: dict[str, list[float]] = {}  # the baseline's F1, question by question
    results: list[SizeResult] = []
    for size in task.sizes:
        view = growing.add(task.documents[growing.view.num_documents : size])
        asker = Asker(
            model=model,
            bank=growing.bank,
            view=view,
            batch_size=origin.batch_size,
            top_k=origin.top_k,
            num_readings=origin.num_readings,
            max_new_tokens=origin.max_new_tokens,
        )
        advance = track(f"retrieve at {size}", len(asked))
        ranks = asker.rank_all(asked, ways=("fused",), advance=advance)["fused"]
        for mode in task.modes:
            predictions = asker.answer_all(
                mode,
                asked,
                log=log,
                log_name=f"{mode}-{size}",
                advance=track(f"{mode} at {size}", len(asked)),
            )
            pairs = [(p.answer, q.references) for q, p in zip(asked, predictions, strict=True)]
            overlaps = [f1(*pair) for pair in pairs]
            results.append(
                SizeResult(
                    mode=mode,
                    num_documents=size,
                    f1=normal(overlaps),
                    strict_em=wilson([strict_em(*pair) for pair in pairs]),
                    f1_ratio=paired_ratio(overlaps, scores.setdefault(mode, overlaps)),
                    recall=score_ranks(ranks),
                )
            )
    by_mode = [result for mode in task.modes for result in results if result.mode == mode]
    return RetentionResult(sizes=tuple(by_mode), num_questions=len(asked), origin=origin)
