"""Lanes: bounds, order, fairness, deadlines and cancellation; no engine behind them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from mac_core.engine.lanes import Turn
from mac_core.engine.scheduler import Behind, Scheduler
from mac_core.engine.tickets import DocumentsTicket, QuestionTicket, ReadTicket, RemovalTicket
from mac_core.errors import BankBehind, DeadlineExceeded, InvalidInput, NotReady, Overloaded
from mac_core.types import Document, Question
from tests.unit.engine.fakes import WAIT_S, HandClock


class Bank:
    """A version, and what a question for another one lacks."""

    version = 0

    def behind(self, wanted: int) -> Behind:
        def behind() -> BankBehind | None:
            lacks = self.version < wanted
            return BankBehind(bank_version=self.version, min_version=wanted) if lacks else None

        return behind


def make_scheduler(
    clock: HandClock | None = None,
    *,
    max_queued: int = 8,
    observe_late: Callable[[float], None] = lambda waited_s: None,
) -> Scheduler:
    hand = clock or HandClock()
    scheduler = Scheduler(
        max_queued_questions=max_queued,
        max_queued_documents=max_queued,
        max_batch_questions=2,
        max_batch_documents=3,
        clock=lambda: hand.monotonic_s,
        observe_late=observe_late,
    )
    scheduler.open()
    return scheduler


def question(text: str = "q", *, timeout_ms: float | None = None) -> QuestionTicket:
    return QuestionTicket(question=Question(text=text), submitted_at=1000.0, timeout_ms=timeout_ms)


def documents(amount: int = 1, *, namespace: str = "default") -> DocumentsTicket:
    texts = tuple(Document(text=f"d{i}") for i in range(amount))
    return DocumentsTicket(documents=texts, namespace=namespace, submitted_at=1000.0)


def lanes_of(turn: Turn | None) -> str:
    assert turn is not None
    sizes = {"r": turn.reads, "q": turn.questions, "d": turn.documents}
    names = [f"{name}{len(items)}" for name, items in sizes.items() if items]
    return "".join([*names, "x" * bool(turn.removal), "i" * turn.continues_ingest])


def test_questions_beyond_the_limit_are_refused_at_once() -> None:
    scheduler = make_scheduler(max_queued=2)
    scheduler.submit_question(question())
    scheduler.submit_question(question())
    with pytest.raises(Overloaded, match="questions queue holds its limit of 2") as caught:
        scheduler.submit_question(question())
    assert (caught.value.lane, caught.value.max_queued) == ("questions", 2)
    assert caught.value.retry_after_s >= 1.0


def test_documents_count_one_by_one_and_all_or_none() -> None:
    scheduler = make_scheduler(max_queued=4)
    scheduler.submit_documents(documents(3))
    with pytest.raises(Overloaded, match="documents queue"):
        scheduler.submit_documents(documents(2))
    assert scheduler.count_documents() == 3
    scheduler.submit_documents(documents(1))


def test_more_documents_than_the_queue_ever_holds_are_invalid() -> None:
    with pytest.raises(InvalidInput, match="5 documents in one call, the queue holds 4"):
        make_scheduler(max_queued=4).submit_documents(documents(5))


def test_a_full_documents_lane_leaves_the_questions_lane_open() -> None:
    scheduler = make_scheduler(max_queued=4)
    scheduler.submit_documents(documents(4))
    scheduler.submit_question(question())
    assert scheduler.count_questions() == 1


def test_retry_after_follows_the_pace() -> None:
    scheduler = make_scheduler(max_queued=2)
    for _ in range(50):
        scheduler.questions.note_pace(num_items=1, seconds=10.0)
    scheduler.submit_question(question())
    scheduler.submit_question(question())
    with pytest.raises(Overloaded) as caught:
        scheduler.submit_question(question())
    assert caught.value.retry_after_s == pytest.approx(20.0, rel=0.01)


def test_questions_and_documents_alternate_and_reads_go_first() -> None:
    scheduler = make_scheduler()
    for _ in range(5):
        scheduler.submit_question(question())
    scheduler.submit_documents(documents(5))
    scheduler.submit_read(ReadTicket[int](read=lambda: 1, submitted_at=1000.0))
    taken = [lanes_of(scheduler.take()) for _ in range(6)]
    assert taken == ["r1", "q2", "d3", "q2", "d2", "q1"]


def test_an_ingest_under_way_takes_the_documents_turn() -> None:
    scheduler = make_scheduler()
    for _ in range(3):
        scheduler.submit_question(question())
    scheduler.submit_documents(documents(1))
    taken = [lanes_of(scheduler.take(is_ingesting=True)) for _ in range(4)]
    assert taken == ["q2", "i", "q1", "i"]
    assert scheduler.count_documents() == 1


def test_documents_of_two_namespaces_and_removals_stay_in_order() -> None:
    scheduler = make_scheduler()
    removal = RemovalTicket(ids=("a",), namespace="default", submitted_at=1000.0)
    scheduler.submit_documents(documents(2))
    scheduler.submit_documents(documents(1, namespace="other"))
    scheduler.submit_removal(removal)
    scheduler.submit_documents(documents(1))
    assert [lanes_of(scheduler.take()) for _ in range(4)] == ["d2", "d1", "x", "d1"]


def test_question_whose_deadline_passed_in_the_queue_is_never_taken() -> None:
    clock = HandClock()
    scheduler = make_scheduler(clock)
    late, other = question(timeout_ms=100), question()
    scheduler.submit_question(late)
    scheduler.submit_question(other)
    clock.turn(0.2)
    assert scheduler.take() == Turn(questions=(other,))
    with pytest.raises(DeadlineExceeded, match="100 ms passed in the queue"):
        late.future.result(0)


def test_cancelled_question_leaves_the_queue_and_its_waiters_are_told() -> None:
    scheduler = make_scheduler(max_queued=1)
    ticket = question()
    scheduler.submit_question(ticket)
    assert ticket.future.cancel()
    assert scheduler.count_questions() == 0
    assert wait([ticket.future], timeout=WAIT_S).done == {ticket.future}
    scheduler.submit_question(question())


def test_cancelled_documents_leave_the_queue() -> None:
    scheduler = make_scheduler()
    ticket = documents(4)
    scheduler.submit_documents(ticket)
    ticket.future.cancel()
    assert scheduler.count_documents() == 0


def test_nothing_is_accepted_before_open_nor_after_drain() -> None:
    scheduler = Scheduler(
        max_queued_questions=1,
        max_queued_documents=1,
        max_batch_questions=1,
        max_batch_documents=1,
    )
    with pytest.raises(NotReady, match="starting"):
        scheduler.submit_question(question())
    scheduler.drain("the engine is draining")
    scheduler.open()
    with pytest.raises(NotReady, match="draining"):
        scheduler.submit_documents(documents())


def test_drain_gives_what_is_queued_then_ends() -> None:
    scheduler = make_scheduler()
    scheduler.submit_question(question())
    scheduler.submit_documents(documents())
    scheduler.drain("the engine is draining")
    assert [lanes_of(scheduler.take()) for _ in range(2)] == ["q1", "d1"]
    assert lanes_of(scheduler.take(is_ingesting=True)) == "i"
    assert scheduler.take() is None


def test_stop_ends_at_once_and_everybody_is_told() -> None:
    scheduler = make_scheduler()
    queued, in_batch, batch = question(), question(), documents(2)
    scheduler.submit_question(in_batch)
    scheduler.take()
    scheduler.submit_question(queued)
    scheduler.submit_documents(batch)
    scheduler.stop("the engine was stopped")
    assert scheduler.take() is None
    scheduler.fail_open(NotReady("the engine was stopped"))
    for future in (queued.future, in_batch.future, batch.future):
        assert isinstance(future.exception(0), NotReady)


def test_take_waits_until_something_comes() -> None:
    scheduler = make_scheduler()
    ticket = question()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(scheduler.take)
        scheduler.submit_question(ticket)
        assert taken.result(WAIT_S) == Turn(questions=(ticket,))


def test_take_wakes_up_without_work_when_asked_to() -> None:
    assert make_scheduler().take(wake_after_s=0.0) == Turn()


def test_parked_question_comes_first_after_unpark() -> None:
    scheduler = make_scheduler()
    parked, other, bank = question("parked"), question("other"), Bank()
    scheduler.park(parked, bank.behind(1))
    scheduler.submit_question(other)
    assert scheduler.count_questions() == 2
    bank.version = 1
    scheduler.unpark()
    assert scheduler.take() == Turn(questions=(parked, other))


def test_questions_that_wait_on_keep_nobody_from_being_answered() -> None:
    # One client's min_version far ahead, and documents that come all the time.
    scheduler, bank = make_scheduler(), Bank()
    for _ in range(4):
        scheduler.park(question("parked"), bank.behind(9))
    other = question("other")
    scheduler.submit_question(other)
    scheduler.submit_documents(documents(3))
    for version in (1, 2):
        bank.version = version
        scheduler.unpark()
    assert scheduler.take() == Turn(questions=(other,))
    assert scheduler.count_questions() == 4


def test_questions_are_answered_while_readings_never_end() -> None:
    scheduler = make_scheduler()
    scheduler.submit_question(question())
    scheduler.submit_documents(documents(1))
    taken = []
    for _ in range(5):
        scheduler.submit_read(ReadTicket[int](read=lambda: 1, submitted_at=1000.0))
        taken.append(lanes_of(scheduler.take()))
    assert taken == ["r1", "q1", "r2", "d1", "r2"]


def test_parked_question_gets_its_error_at_its_deadline() -> None:
    clock = HandClock()
    scheduler = make_scheduler(clock)
    parked, bank = question(timeout_ms=100), Bank()
    scheduler.park(parked, bank.behind(3))
    bank.version = 2
    scheduler.unpark()
    clock.turn(0.2)
    assert scheduler.take(wake_after_s=0.0) == Turn()
    with pytest.raises(BankBehind, match="version 2, asked for 3"):
        parked.future.result(0)


def test_how_long_a_late_question_waited_is_told() -> None:
    clock, waited = HandClock(), list[float]()
    scheduler = make_scheduler(clock, observe_late=waited.append)
    scheduler.submit_question(question(timeout_ms=100))
    scheduler.park(question(timeout_ms=200), Bank().behind(1))
    clock.turn(0.3)
    assert scheduler.take(wake_after_s=0.0) == Turn()
    assert waited == pytest.approx([0.3, 0.3])


def test_parked_question_gets_its_error_when_no_write_can_follow() -> None:
    scheduler = make_scheduler()
    parked = question()
    scheduler.park(parked, Bank().behind(1))
    scheduler.submit_documents(documents())
    scheduler.drain("the engine is draining")
    assert lanes_of(scheduler.take()) == "d1"
    assert not parked.future.done()
    assert scheduler.take() is None
    assert isinstance(parked.future.exception(0), BankBehind)


def test_first_outcome_of_a_ticket_stays() -> None:
    ticket = question()
    assert ticket.fail(NotReady("first"))
    assert not ticket.fail(NotReady("second"))
    assert str(ticket.future.exception(0)) == "first"
