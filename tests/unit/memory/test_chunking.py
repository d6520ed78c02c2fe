"""Chunks cover everything, fit the network, and break where a reader would."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_core.errors import InvalidInput
from mac_core.memory.chunking import chunk_text

Offsets = list[tuple[int, int]]


class Words:
    """A token for each word and each mark."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        offsets = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        return list(range(len(offsets))), offsets


class Pieces:
    """Words in pieces, the first of a word longer: a part has more tokens alone than inside."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        pattern = r"(?<!\w)\w{1,2}|\w{1,5}|[^\w\s]"
        offsets = [match.span() for match in re.finditer(pattern, text)]
        return list(range(len(offsets))), offsets


class Bytes:
    """A token for each UTF-8 byte: several tokens share one character's offsets."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        offsets = [
            (place, place + 1)
            for place, character in enumerate(text)
            for _ in character.encode("utf-8", "replace")
            if not character.isspace()
        ]
        return list(range(len(offsets))), offsets


TEXTS = st.text(alphabet="ab cdefgh.! \n\u00e9\u4e2d\U0001f600", min_size=1, max_size=200)
LIMITS = st.tuples(st.integers(4, 12), st.integers(0, 3))


@pytest.mark.parametrize(
    "tokenizer", [Words(), Pieces(), Bytes()], ids=["words", "pieces", "bytes"]
)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS.filter(lambda text: bool(text.strip())), limits=LIMITS)
def test_every_token_and_character_is_in_a_chunk_that_fits(
    tokenizer: Words, text: str, limits: tuple[int, int]
) -> None:
    max_tokens, overlap_tokens = limits
    chunks = chunk_text(text, tokenizer, max_tokens=max_tokens, overlap_tokens=overlap_tokens)
    covered = {place for chunk in chunks for place in range(chunk.start, chunk.end)}
    assert covered == set(range(len(text)))
    for start, end in tokenizer.encode_with_offsets(text)[1]:
        assert any(chunk.start <= start and end <= chunk.end for chunk in chunks)
    for index, chunk in enumerate(chunks):
        assert chunk.index == index
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.num_tokens == len(tokenizer.encode_with_offsets(chunk.text)[0]) <= max_tokens


def test_text_that_fits_is_one_chunk_with_its_white_space() -> None:
    (chunk,) = chunk_text(" one two ", Words(), max_tokens=2, overlap_tokens=0)
    assert (chunk.text, chunk.start, chunk.end, chunk.num_tokens) == (" one two ", 0, 9, 2)


def test_neighbours_share_the_overlap() -> None:
    text = " ".join(f"w{number}" for number in range(30))
    chunks = chunk_text(text, Words(), max_tokens=10, overlap_tokens=3)
    shared = [before.end - after.start for before, after in zip(chunks, chunks[1:], strict=False)]
    assert [len(text[chunk.start : chunk.end].split()) for chunk in chunks] == [10, 10, 10, 9]
    assert all(count > 0 for count in shared)
    assert chunks[1].text.split()[0] == "w7"


def test_a_sentence_end_in_the_last_quarter_ends_the_chunk() -> None:
    text = "a b c d e f g h i j. k l m n o p q r s t u v"
    chunks = chunk_text(text, Words(), max_tokens=12, overlap_tokens=0)
    assert chunks[0].text.rstrip().endswith("j.")
    assert chunks[1].text.startswith("k")


def test_an_early_sentence_end_does_not_waste_the_window() -> None:
    text = "a b. " + " ".join("cdefghijklmnopqrst")
    chunks = chunk_text(text, Words(), max_tokens=12, overlap_tokens=0)
    assert chunks[0].num_tokens == 12


def test_a_new_line_ends_the_chunk_as_a_sentence_does() -> None:
    text = "a b c d e f g h i j\nk l m n o p q"
    chunks = chunk_text(text, Words(), max_tokens=12, overlap_tokens=0)
    assert chunks[0].text.rstrip().endswith("j")


def test_a_number_is_not_the_end_of_a_sentence() -> None:
    text = "a b c d e f g h 3.14 i j k l m n o p"
    chunks = chunk_text(text, Words(), max_tokens=11, overlap_tokens=0)
    assert "3.14" in chunks[0].text


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_text_without_tokens_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=f"{len(text)} characters"):
        chunk_text(text, Words(), max_tokens=4, overlap_tokens=1)


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_overlap_must_leave_room_to_advance(overlap: int) -> None:
    with pytest.raises(ValueError, match=str(overlap)):
        chunk_text("a b c d e f", Words(), max_tokens=4, overlap_tokens=overlap)
