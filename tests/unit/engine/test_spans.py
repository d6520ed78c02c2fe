"""Finding a decoded answer in the text it was copied from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mac_core.bundles
from mac_core.engine.spans import MAX_SNIPPET_CHARS, find_answer, snippet, words_of
from mac_core.tokenization import Tokenizer

SHIPPED = Path(mac_core.bundles.__file__).parent / "mini" / "tokenizer.json"
TOKENIZER = Tokenizer(SHIPPED.read_text(encoding="utf-8"))
# Letters with and without accents, composed and not; marks, quotes, dashes; what is not seen.
LETTERS = "abcéÉöñçİŁß\u0301θΣς東京서"
MARKS = ".,;:!?'\"’‘“”«»()[]-–—‑/&%$€£°_#@*+=<>…\u00ad\u200b\u200e\x0c"
WORDS = st.text(alphabet=LETTERS + "0123456789" + MARKS, min_size=1, max_size=8)
SPACES = st.sampled_from([" ", "  ", "\n", "\u00a0", "\u2028", " \t"])


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
        ("3 , 000", "3 of 3,000 men", "3,000"),
        ("$ 5", "for US$5 each", "$5"),
        ("5 . 3 %", "about 5.3% of it", "5.3%"),
        ("u . s", "in the U.S. Army", "U.S"),
        ("king", "The king's speech", "king"),
        ("1914", "the war (1914–1918) ended", "1914"),
        ("1918", "It ended in 1918.", "1918"),
        ("1918", "It ended in 1918, late.", "1918"),
        ("cooperate", "they co\u00adoperate now", "co\u00adoperate"),
        ("salam", "called \u200esa\u200clam\u200e here", "sa\u200clam"),
        ("cooperate", "co\x0cope\x1frate", "co\x0cope\x1frate"),
        ("fiction", "a \ufb01ction", "\ufb01ction"),
        ("2024", "in ２０２４", "２０２４"),
        ("rock ' n ' roll", "Rock `n´ Roll", "Rock `n´ Roll"),
        ("οδος", "ΟΔΟΣ", "ΟΔΟΣ"),
        ("new york city", "New\u00a0York\r\nCity", "New\u00a0York\r\nCity"),
        ("o ' brien - smith", "Ms O’Brien‑Smith said", "O’Brien‑Smith"),
        ('" the " wall', "at “The” Wall", "“The” Wall"),
        ("washington , d . c .", "in Washington, D.C., today", "Washington, D.C."),
        ("a", "A\u0301 la carte", "A\u0301"),
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
        ("3", "It cost 3,000."),
        ("000", "It cost 3,000."),
        ("5", "about 5.3 of it"),
        ("3", "about 5.3 of it"),
        ("102", "some 10² of them"),
        ("112", "some 1½ of them"),
        ("", "anything"),
        ("   ", "anything"),
        (". . .", "no marks here"),
        ("paris", ""),
        ("paris and berlin", "Paris and"),
    ],
)
def test_parts_of_words_and_empty_answers_are_not_found(answer: str, text: str) -> None:
    assert find_answer(answer, text) is None


@given(words=st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=6), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=300)
def test_what_the_tokenizer_makes_of_words_is_found_where_they_stand(
    words: list[tuple[str, str]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    text = "".join(word + space for word, space in words)
    copied = "".join(word + space for word, space in words[first : last + 1])
    ids = TOKENIZER.encode(copied)
    assume(ids and TOKENIZER.token_id("[UNK]") not in ids)  # else something of it is lost
    answer = TOKENIZER.decode(ids)
    found = find_answer(answer, text)
    assert found is not None
    literal = text[slice(*found)]
    assert words_of(literal) == words_of(copied)
    assert literal == literal.strip()
    assert find_answer(literal, text) == found


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
