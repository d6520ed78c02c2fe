"""The table of problems is complete, and hides what is internal."""

import pytest

import mac_core.errors
from mac_core.errors import ForeignRecord, MacError, QuestionTooLong
from server.problems import PROBLEMS, classify

ERRORS = [
    kind
    for kind in vars(mac_core.errors).values()
    if isinstance(kind, type) and issubclass(kind, MacError) and kind is not MacError
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_own_row(kind: type[MacError]) -> None:
    assert kind in PROBLEMS


def test_codes_are_distinct() -> None:
    codes = [code for _, code in PROBLEMS.values()]
    assert len(codes) == len(set(codes))


def test_a_callers_error_keeps_its_message() -> None:
    status, code, detail = classify(QuestionTooLong(num_tokens=70, max_tokens=64))
    assert (status, code) == (422, "question_too_long")
    assert detail == "question has 70 tokens, the limit is 64"


def test_a_subclass_without_a_row_is_its_base() -> None:
    class Newer(ForeignRecord): ...

    assert classify(Newer("run mac bank reindex"))[1] == "foreign_record"


def test_an_unknown_error_is_500_without_its_message() -> None:
    status, code, detail = classify(KeyError("secret"))
    assert (status, code) == (500, "internal_error")
    assert "secret" not in detail
