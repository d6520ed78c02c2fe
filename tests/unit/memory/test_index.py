"""BM25 that forgets without a trace, and exact dense candidates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_core.memory.growing import GrowingTensor
from mac_core.memory.index import (
    MAX_QUERY_TERMS,
    Bm25Index,
    best_rows,
    exact_cosines,
    query_terms,
)

TEXTS = [
    "the cat sat on the mat", "a dog chased the cat", "dogs and cats are animals",
    "the moon orbits the earth", "caf\u00e9 in the U.S.-based chain", "nothing here", "cat cat cat",
]  # fmt: skip


def filled(texts: dict[int, str]) -> Bm25Index:
    index = Bm25Index()
    for rowid, text in texts.items():
        index.add(rowid, text)
    return index


def test_the_rarer_word_weighs_more() -> None:
    hits = filled(dict(enumerate(TEXTS))).search("cat moon")
    assert hits[0][0] == 3
    assert all(score > 0 for _, score in hits)


def test_scores_are_bm25_with_the_textbook_constants() -> None:
    index = filled({1: "alpha beta beta", 2: "gamma delta", 3: "delta delta delta delta"})
    ((rowid, score),) = index.search("beta")
    idf = math.log((3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 * 2.2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 3 / 3))
    assert (rowid, score) == (1, pytest.approx(expected))


def test_words_are_stemmed_and_accents_folded() -> None:
    index = filled(dict(enumerate(TEXTS)))
    assert {rowid for rowid, _ in index.search("chasing")} == {1}
    assert {rowid for rowid, _ in index.search("cafe\u0301")} == {4}


def test_stop_words_are_dropped_unless_there_is_nothing_else() -> None:
    assert query_terms("Who chased the cat?") == ["chased", "cat"]
    assert query_terms("Who are you") == ["who", "are", "you"]


def test_limit_and_allowed_rows() -> None:
    index = filled(dict(enumerate(TEXTS)))
    everything = index.search("cat")
    assert index.search("cat", limit=1) == everything[:1]
    assert index.search("cat", allowed={0, 2}) == [hit for hit in everything if hit[0] in {0, 2}]


def test_ties_stand_in_order_of_rows() -> None:
    index = filled({5: "same words", 2: "same words", 9: "same words", 1: "other", 3: "third"})
    assert [rowid for rowid, _ in index.search("words")] == [2, 5, 9]


@pytest.mark.parametrize(
    "question",
    [
        '"', '""', "'", "cat AND", "NOT cat", "cat*", "NEAR(cat dog)", "text:cat", "^cat", "-cat",
        "(cat", "cat\x00dog", "\U0001f600", "\ud800 cat", "", "   ", "_", "\u0301", "; DROP TABLE",
        "\u00b2\u00bd\u2460", "AND OR NOT", "{cat dog}:", "cat + dog", "\u0e01\u0e33",
    ],
)  # fmt: skip
def test_hostile_questions_are_only_text(question: str) -> None:
    index = filled(dict(enumerate(TEXTS)))
    index.search(question)
    assert index.search("moon") == filled(dict(enumerate(TEXTS))).search("moon")


@settings(max_examples=100, deadline=None)
@given(question=st.text(max_size=60))
def test_any_text_is_a_question(question: str) -> None:
    filled({1: question.encode("utf-8", "ignore").decode(), 2: "x"}).search(question)


def test_a_question_of_ten_thousand_words_is_capped() -> None:
    question = " ".join(f"word{number}" for number in range(10_000)) + " " + "x" * 10_000
    assert len(query_terms(question)) == MAX_QUERY_TERMS
    assert filled({1: "word3 word4"}).search(question)[0][0] == 1


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(
        st.text(alphabet="ab c", min_size=1, max_size=12).map(lambda text: text + " d"),
        min_size=1,
        max_size=12,
    ),
    removed=st.sets(st.integers(0, 11)),
)
def test_after_remove_scores_are_bitwise_those_of_an_index_that_never_held_the_rows(
    texts: list[str], removed: set[int]
) -> None:
    index = filled(dict(enumerate(texts)))
    for rowid in removed & set(range(len(texts))):
        index.remove(rowid)
    never = filled({row: text for row, text in enumerate(texts) if row not in removed})
    for question in ("a", "b", "ab c d", "d aa bb"):
        assert index.search(question) == never.search(question)


def test_text_that_is_not_valid_unicode_can_be_added() -> None:
    index = filled({1: "cat \ud800 dog \x00 end"})
    assert [rowid for rowid, _ in index.search("dog")] == [1]


def test_growing_tensor_never_changes_what_it_gave() -> None:
    growing = GrowingTensor(torch.empty(0, 2))
    given_rows = []
    for value in range(40):
        growing.append(torch.full((1, 2), float(value)))
        given_rows.append(growing.rows)
    growing.keep(torch.tensor([0, 39]))
    growing.append(torch.full((1, 2), -1.0))
    assert growing.rows[:, 0].tolist() == [0.0, 39.0, -1.0]
    for count, rows in enumerate(given_rows, start=1):
        assert rows[:, 0].tolist() == [float(value) for value in range(count)]


def test_growing_tensor_copies_rarely() -> None:
    growing = GrowingTensor(torch.empty(0, 1))
    buffers = set()
    for _ in range(1000):
        growing.append(torch.zeros(1, 1))
        buffers.add(growing.rows.untyped_storage().data_ptr())
    assert len(buffers) <= 8


def test_best_rows_takes_ties_and_leaves_the_ineligible() -> None:
    scores = torch.tensor([9.0, 1.0, 3.0, 3.0, 2.0])
    eligible = torch.tensor([False, True, True, True, True])
    assert best_rows(scores, eligible, limit=1).tolist() == [2, 3]
    assert best_rows(scores, eligible, limit=99).tolist() == [1, 2, 3, 4]
    assert best_rows(scores, ~eligible & False, limit=3).tolist() == []


def test_exact_cosine_of_a_row_ignores_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(37, 384, generator=generator), torch.randn(384, generator=generator)
    together = exact_cosines(keys, query)
    alone = torch.cat([exact_cosines(keys[row : row + 1], query) for row in range(37)])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, keys @ query, rtol=1e-5, atol=1e-4)
