import pytest

from mac_core.evaluation.metrics import (
    f1,
    normal,
    normalize,
    prefix_em,
    recall_at,
    shortest,
    strict_em,
    wilson,
)


@pytest.mark.parametrize(
    ("text", "normal_form"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("an Apple, a day", "apple day"),
        ("theatre and Anna", "theatre and anna"),
        ("U.S.A.", "usa"),
        ("Beyoncé's", "beyoncés"),
        ("MÜNCHEN", "münchen"),
        ("1–0", "1–0"),
        ("\tthe\n", ""),
    ],
)
def test_normalize_gives_the_form_that_is_compared(text: str, normal_form: str) -> None:
    assert normalize(text) == normal_form


def test_strict_em_accepts_any_reference() -> None:
    assert strict_em("The October of 1973.", ("1973", "october of 1973"))


@pytest.mark.parametrize(("answer", "reference"), [("1000", "10"), ("anything", "The"), ("", "10")])
def test_strict_em_does_not_count_a_prefix(answer: str, reference: str) -> None:
    assert not strict_em(answer, (reference,))


@pytest.mark.parametrize(("answer", "reference"), [("1000", "10"), ("anything", "The")])
def test_prefix_em_counts_what_macs_evaluation_counts(answer: str, reference: str) -> None:
    assert prefix_em(answer, (reference,))


@pytest.mark.parametrize("answer", ["10", "October 1973", ""])
def test_prefix_em_looks_at_the_shortest_reference_only(answer: str) -> None:
    assert not prefix_em(answer, ("October 1973", "1973"))


def test_shortest_keeps_the_first_of_equals() -> None:
    assert shortest(("longer", "one", "two")) == "one"


def test_f1_by_hand_is_the_best_over_references() -> None:
    # "cat sat on mat" and "black cat sat": 2 words in common, precision 2/4, recall 2/3
    assert f1("the cat sat on a mat", ("dog", "the black cat sat")) == pytest.approx(4 / 7)


def test_f1_counts_a_repeated_word_as_often_as_both_have_it() -> None:
    assert f1("new new york", ("new york york",)) == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(
    ("answer", "reference", "score"), [("the", "a", 1.0), ("", "x", 0.0), ("x", "the", 0.0)]
)
def test_f1_of_nothing_is_right_only_for_nothing(answer: str, reference: str, score: float) -> None:
    assert f1(answer, (reference,)) == score


@pytest.mark.parametrize(
    ("rank", "k", "found"), [(0, 1, True), (1, 1, False), (7, 8, True), (None, 32, False)]
)
def test_recall_counts_ranks_from_zero(rank: int | None, k: int, found: bool) -> None:
    assert recall_at(rank, k) is found


def test_wilson_matches_the_published_example() -> None:
    # 81 of 263: Newcombe 1998, Statistics in Medicine 17, table I, method 3
    estimate = wilson([True] * 81 + [False] * 182)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_wilson_stays_open_at_no_hits() -> None:
    estimate = wilson([False] * 10)
    assert estimate.low == pytest.approx(0.0, abs=1e-12)
    assert 0.27 < estimate.high < 0.29


def test_normal_interval_by_hand() -> None:
    estimate = normal([0.0, 1.0, 0.0, 1.0])  # standard deviation sqrt(1/3), error sqrt(1/12)
    assert estimate.mean == 0.5
    assert estimate.low == 0.0
    assert normal([0.4, 0.6]).high == pytest.approx(0.5 + 1.959964 * 0.1)


def test_normal_interval_of_one_value_says_nothing() -> None:
    estimate = normal([0.5])
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_nothing_is_right_where_there_is_no_reference() -> None:
    assert f1("anything", ()) == 0.0
    assert not strict_em("anything", ())
