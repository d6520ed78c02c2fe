"""Finding a decoded answer in the text it was copied from."""

from __future__ import annotations

import pytest

from mac_core.engine.spans import MAX_SNIPPET_CHARS, find_answer, snippet


@pytest.mark.parametrize(
    ("answer", "text", "literal"),
    [
        ("twenty - one", "She was Twenty-one then.", "Twenty-one"),
        ("twenty-one", "She was twenty - one then.", "twenty - one"),
        ("u. s.", "In the U.S. Army", "U.S."),
        ("u . s . army", "In the U.S. Army", "U.S. Army"),
        ("1 , 000", "It cost $1,000 then.", "1,000"),
        ("$ 1, 000", "It cost $1,000 then.", "$1,000"),
        ("beyonce", "Sung by Beyoncé Knowles.", "Beyoncé"),
        ("beyonce", "Sung by Beyonce\u0301 Knowles.", "Beyonce\u0301"),
        ("francois hollande", "President\nFrançois\n  Hollande spoke", "François\n  Hollande"),
        ("the king ' s speech", "He saw The King’s Speech.", "The King’s Speech"),
        ("1914 - 1918", "the war (1914–1918) ended", "1914–1918"),
        ("paris .", "to Paris and back", "Paris"),
        ("東 京", "首都は東京です", "東京"),
        ("istanbul", "from İstanbul", "İstanbul"),
        ("서울", "수도는 서울 이다", "서울"),
        ("snake _ case", "a snake_case name", "snake_case"),
    ],
)
def test_answer_is_found_as_it_stands_in_the_text(answer: str, text: str, literal: str) -> None:
    found = find_answer(answer, text)
    assert found is not None
    assert text[found[0] : found[1]] == literal


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("art", "the artist"),
        ("the rapist", "a therapist"),
        ("14", "in 2014"),
        ("", "anything"),
        ("   ", "anything"),
        (". . .", "no marks here"),
        ("paris", ""),
        ("paris and berlin", "Paris and"),
    ],
)
def test_parts_of_words_and_empty_answers_are_not_found(answer: str, text: str) -> None:
    assert find_answer(answer, text) is None


def test_first_of_several_occurrences_is_taken() -> None:
    assert find_answer("rome", "To Rome, from Rome.") == (3, 7)


def test_snippet_is_the_sentence_around_the_span() -> None:
    text = "One came first. The U.S. Army met Mr. Ohm in Bern. Then it rained."
    start = text.index("Bern")
    assert "Ohm in Bern." in snippet(text, (start, start + 4))
    assert "rained" not in snippet(text, (start, start + 4))
    assert "One came" not in snippet(text, (start, start + 4))


def test_snippet_without_span_is_the_beginning() -> None:
    assert snippet("word " * 100, None).startswith("word word")
    assert len(snippet("word " * 100, None)) <= 201


def test_snippet_of_a_long_sentence_keeps_the_span_and_its_bound() -> None:
    text = "x " * 1000 + "needle " + "y " * 1000
    start = text.index("needle")
    cut = snippet(text, (start, start + 6))
    assert "needle" in cut
    assert len(cut) <= MAX_SNIPPET_CHARS + 1
