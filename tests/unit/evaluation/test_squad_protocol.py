import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.errors import InvalidInput
from mac_core.evaluation.answer_log import AnswerLog
from mac_core.evaluation.learned import learn_documents
from mac_core.evaluation.learned_cache import LearnedCache
from mac_core.evaluation.protocol import MODES, Asker, EvaluationMode
from mac_core.evaluation.results import Origin, Prediction
from mac_core.evaluation.squad_seq import SquadSeq, run_squad_seq
from mac_core.memory.bank import MemoryBank
from mac_core.types import Document

CITIES = ["Ulm", "Oslo", "Rome", "Bath", "Cadiz", "Turin"]
NO_LOG = AnswerLog(None, run={})


@pytest.fixture
def asker(reader: Any, documents: list[Document]) -> Asker:
    bank = MemoryBank(reader.config.selection)
    view = learn_documents(reader, bank, documents, batch_size=4)
    return Asker(model=reader, bank=bank, view=view, batch_size=4)


def answers(asker: Asker, mode: EvaluationMode, questions: Any, **rest: Any) -> list[str]:
    return [p.answer for p in asker.answer_all(mode, questions, log=NO_LOG, **rest)]


def test_every_document_is_amortized_once_in_batches(asker: Asker, reader: Any) -> None:
    assert reader.num_amortized == [4, 2]
    assert [entry.document_id for entry in asker.view.entries] == [f"d{i}" for i in range(6)]


def test_a_long_document_becomes_several_chunks(reader: Any) -> None:
    bank = MemoryBank(reader.config.selection)
    long = Document(id="long", text=" ".join(f"word{i}" for i in range(40)))
    view = learn_documents(reader, bank, [long], batch_size=4)
    assert (view.num_documents, len(view.entries)) == (1, 3)


def test_documents_with_one_id_are_refused(reader: Any, documents: list[Document]) -> None:
    bank = MemoryBank(reader.config.selection)
    with pytest.raises(InvalidInput, match="7 documents"):
        learn_documents(reader, bank, [*documents, documents[0]], batch_size=4)


@pytest.mark.parametrize("mode", ["memory", "hybrid", "text", "oracle", "oracle-text"])
def test_a_perfect_reader_is_right_and_in_order_and_spells_as_the_source(
    asker: Asker, questions: Any, mode: EvaluationMode
) -> None:
    assert answers(asker, mode, questions) == CITIES


def test_none_reads_nothing(asker: Asker, reader: Any, questions: Any) -> None:
    assert answers(asker, "none", questions) == ["nowhere"] * 6
    assert all(not (r.modulations or r.texts) for batch in reader.batches for r in batch)


def asked(reader: Any) -> list[list[str]]:
    return [[request.question for request in batch] for batch in reader.batches]


def test_questions_of_like_length_go_together(asker: Asker, reader: Any, questions: Any) -> None:
    answers(asker, "none", questions)
    assert [len(batch) for batch in reader.batches] == [4, 2]
    by_length = sorted((question.text for question in questions), key=len)
    assert sum(asked(reader), []) == by_length != [question.text for question in questions]


def test_questions_on_one_document_go_together_where_its_text_is_read(
    asker: Asker, reader: Any, questions: Any
) -> None:
    again = [
        replace(question, id=f"again-{question.id}", text=f"{question.text} Again?")
        for question in questions
    ]
    assert answers(asker, "text", [*questions, *again]) == CITIES * 2
    texts = [request.texts for batch in reader.batches for request in batch]
    assert texts[0::2] == texts[1::2]


def test_an_answer_carries_what_its_seconds_were_taken_with(asker: Asker, questions: Any) -> None:
    made = asker.answer_all("memory", questions, log=NO_LOG)
    assert {p.batch_size for p in made} == {4}
    assert {p.num_threads for p in made} == {torch.get_num_threads()}


def test_an_answer_carries_the_models_confidence(asker: Asker, reader: Any, questions: Any) -> None:
    reader.confidences = {question.text: place / 10 for place, question in enumerate(questions)}
    made = asker.answer_all("memory", questions, log=NO_LOG)
    assert [prediction.confidence for prediction in made] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_log_keeps_answers_under_the_name_it_is_given(
    asker: Asker, questions: Any, tmp_path: Path
) -> None:
    log = AnswerLog(tmp_path, run={})
    asker.answer_all("memory", questions, log=log, log_name="memory-200")
    assert log.read("memory") == {}
    assert len(log.read("memory-200")) == 6


def what_is_read(reader: Any) -> set[tuple[int, int]]:
    requests = [request for batch in reader.batches for request in batch]
    alike = [[1.0] * len(request.modulations) for request in requests]
    return {
        (len(request.modulations), len(request.shown(mass)))
        for request, mass in zip(requests, alike, strict=True)
    }


@pytest.mark.parametrize(
    ("mode", "modulations_and_texts"),
    [("memory", (2, 0)), ("hybrid", (2, 1)), ("text", (0, 1)), ("oracle", (1, 0)),
     ("oracle-text", (0, 1))],
)  # fmt: skip
def test_a_mode_reads_what_its_name_says(
    asker: Asker, reader: Any, questions: Any, mode: EvaluationMode, modulations_and_texts: Any
) -> None:
    answers(asker, mode, questions)
    assert what_is_read(reader) == {modulations_and_texts}


@pytest.mark.parametrize("mode", ["oracle", "oracle-text"])
def test_an_oracle_sees_the_right_document_and_no_other(
    asker: Asker, reader: Any, questions: Any, mode: EvaluationMode
) -> None:
    # Sent to another document, even a perfect reader cannot know.
    wrong = [
        type(question)(
            id=question.id,
            text=question.text,
            references=question.references,
            document_id=f"d{(place + 1) % 6}",
        )
        for place, question in enumerate(questions)
    ]
    assert answers(asker, mode, wrong) == ["nowhere"] * 6


def test_top_k_decides_how_many_modulations_are_read(
    reader: Any, asker: Asker, questions: Any
) -> None:
    wide = Asker(model=reader, bank=asker.bank, view=asker.view, top_k=5)
    answers(wide, "memory", questions)
    assert what_is_read(reader) == {(5, 0)}


def test_ranks_are_of_documents_and_know_what_was_missed(
    asker: Asker, questions: Any, documents: list[Document]
) -> None:
    ranks = asker.rank_all(questions)
    assert ranks == {"fused": [0] * 6, "dense": [0] * 6, "bm25": [0] * 6}


def test_a_document_that_shares_no_word_is_missed_by_bm25_only(
    asker: Asker, questions: Any
) -> None:
    first = questions[0]
    silent = type(first)(id="s", text="Who?", references=("Ulm",), document_id=first.document_id)
    ranks = asker.rank_all([silent])
    assert ranks["bm25"] == [None]
    assert None not in ranks["dense"]


@pytest.fixture
def matched(reader: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks the reader ranked again at each question, now that it does: 3 or more."""
    config = reader.config
    reader.config = replace(
        config,
        amortization=replace(config.amortization, kind="latent"),
        prefix=replace(config.prefix, kind="latent"),
        aggregation=replace(config.aggregation, kind="refine", d_late=4),
        selection=replace(config.selection, late_scale=1.0, num_candidates=3),
    )
    counts: list[int] = []

    def match(question: Any, keys: Any) -> torch.Tensor:
        counts.append(len(keys))
        return torch.zeros(len(keys))

    monkeypatch.setattr(reader, "match", match, raising=False)
    return counts


@pytest.mark.parametrize(
    ("top_k", "num_readings", "ranked"), [(None, None, 3), (2, 2, 4), (1, 1, 3), (0, None, 6)]
)
def test_fused_ranks_what_the_engine_ranks(
    matched: list[int], asker: Asker, questions: Any, top_k: Any, num_readings: Any, ranked: int
) -> None:
    asker = replace(asker, top_k=top_k, num_readings=num_readings)
    answers(asker, "memory", questions)
    assert matched == [ranked] * 6
    matched.clear()
    asker.rank_all(questions, ways=("fused",))
    assert matched == [ranked] * 6


def test_what_the_engine_does_not_rank_is_missed(
    matched: list[int], asker: Asker, questions: Any
) -> None:
    # Like no document: the first three stand, in order of writing.
    silent = [replace(question, text="Who?") for question in questions]
    ranks = asker.rank_all(silent, ways=("fused", "dense"))
    assert ranks["fused"] == [0, 1, 2, None, None, None]
    assert None not in ranks["dense"]


def run(
    reader: Any, documents: Any, questions: Any, origin: Origin, log: AnswerLog = NO_LOG
) -> Any:
    task = SquadSeq(documents=documents, questions=questions, modes=MODES, origin=origin)
    return run_squad_seq(reader, task, log=log)


def test_a_run_from_a_cache_has_learned_nothing(
    reader: Any, documents: Any, questions: Any, origin: Origin, tmp_path: Path
) -> None:
    task = SquadSeq(documents=documents, questions=questions, modes=("none",), origin=origin)
    learned = []
    for _ in range(2):
        with LearnedCache(tmp_path, fingerprint=reader.fingerprint) as cache:
            learned.append(run_squad_seq(reader, task, log=NO_LOG, cache=cache)[0])
    first, second = learned
    assert (first.num_chunks, first.num_learned_chunks) == (6, 6)
    assert first.learn_seconds is not None
    assert (second.num_chunks, second.num_learned_chunks) == (6, 0)
    assert second.learn_seconds is None


def test_a_whole_run_scores_every_mode(
    reader: Any, documents: Any, questions: Any, origin: Origin
) -> None:
    evaluation, predictions = run(reader, documents, questions, origin)
    scores = {mode: result.strict_em.mean for mode, result in evaluation.results.items()}
    assert scores == {mode: float(mode != "none") for mode in MODES}
    assert (evaluation.num_documents, evaluation.num_questions) == (6, 6)
    assert evaluation.retrieval["fused"][1].mean == 1.0
    assert [p.question_id for p in predictions["memory"]] == [f"q{i}" for i in range(6)]


class StoppedError(Exception):
    """The run is killed."""


def test_a_killed_run_goes_on_where_it_was(
    reader: Any, documents: Any, questions: Any, origin: Origin, tmp_path: Path
) -> None:
    whole, _ = run(reader, documents, questions, origin)
    everything = [request.question for batch in reader.batches for request in batch]
    reader.batches.clear()

    def dies(requests: Any, **_: Any) -> Any:
        if len(reader.batches) == 5:
            raise StoppedError
        return type(reader).answer(reader, requests)

    reader.answer = dies
    with pytest.raises(StoppedError):
        run(reader, documents, questions, origin, AnswerLog(tmp_path, run={"seed": 3}))
    with (tmp_path / "memory.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"question_id": "q')  # what a kill leaves
    del reader.answer
    log = AnswerLog(tmp_path, run={"seed": 3})
    resumed, _ = run(reader, documents, questions, origin, log)
    again = [request.question for batch in reader.batches for request in batch]
    assert sorted(again) == sorted(everything)
    assert [len(log.read(mode)) for mode in MODES] == [6] * len(MODES)
    assert {m: r.f1 for m, r in resumed.results.items()} == {
        m: r.f1 for m, r in whole.results.items()
    }


def test_another_runs_answers_are_refused_by_name(tmp_path: Path) -> None:
    AnswerLog(tmp_path, run={"seed": 3, "top_k": 2})
    with pytest.raises(InvalidInput, match="holds another run: seed differ"):
        AnswerLog(tmp_path, run={"seed": 4, "top_k": 2})


def test_the_log_keeps_modes_apart(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path, run={})
    kept = Prediction(
        question_id="q",
        answer="Ulm\u2028",
        confidence=0.9,
        seconds=0.5,
        batch_size=4,
        num_threads=1,
    )
    log.append("memory", [kept])
    assert log.read("memory") == {"q": kept}
    assert log.read("none") == {}


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A log whose last line a kill cut, and a second name for the very file."""
    log = AnswerLog(tmp_path, run={})
    made = {"confidence": 0.9, "seconds": 0.5, "batch_size": 4, "num_threads": 1}
    log.append("memory", [Prediction(question_id="q", answer="Ulm", **made)])
    path = tmp_path / "memory.jsonl"
    path.write_bytes(path.read_bytes() + b'{"question_id": "r')
    (tmp_path / "same").hardlink_to(path)
    return path


def test_half_a_line_is_dropped_and_the_old_log_is_whole_until_then(torn: Path) -> None:
    before = torn.read_bytes()
    assert list(AnswerLog(torn.parent, run={}).read("memory")) == ["q"]
    assert torn.read_bytes() == before[: before.index(b"\n") + 1]
    assert (torn.parent / "same").read_bytes() == before  # replaced, not written over


def test_reading_a_whole_log_writes_nothing(torn: Path) -> None:
    log = AnswerLog(torn.parent, run={})
    log.read("memory")
    os.utime(torn, ns=(0, 0))
    written = torn.stat().st_ino, torn.stat().st_mtime_ns
    assert list(log.read("memory")) == ["q"]
    assert (torn.stat().st_ino, torn.stat().st_mtime_ns) == written
