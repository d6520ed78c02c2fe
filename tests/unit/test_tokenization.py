"""Text to ids and back: nothing added, nothing lost, and no mark forged by text."""

from __future__ import annotations

import hashlib

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from mac_core.tokenization import Tokenizer
from tests.builders import VOCABULARY, tiny_tokenizer_json

TEXT = "The dam, built in 1921 by Žofie."


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer_json())


def test_padding_truncation_and_templates_of_the_file_are_without_effect(
    tokenizer: Tokenizer,
) -> None:
    fast = FastTokenizer.from_str(tiny_tokenizer_json())
    fast.enable_truncation(3)
    fast.enable_padding(length=40)
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    lax = Tokenizer(fast.to_str())
    assert lax.encode(TEXT) == tokenizer.encode(TEXT)
    assert lax.encode_batch([TEXT, "dam"]) == [tokenizer.encode(TEXT), tokenizer.encode("dam")]


def test_offsets_are_the_tokens_characters(tokenizer: Tokenizer) -> None:
    ids, offsets = tokenizer.encode_with_offsets(TEXT)
    assert ids == tokenizer.encode(TEXT)
    pieces = [TEXT[start:end].lower() for start, end in offsets]
    assert pieces == ["the", "dam", ",", "built", "in", *"1921", "by", *"žofie", "."]


def test_decoding_gives_the_text_in_lower_case_without_marks(tokenizer: Tokenizer) -> None:
    marks = [tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]"), tokenizer.token_id("[PAD]")]
    ids = [mark for mark in marks if mark is not None]
    assert (
        tokenizer.decode([*ids, *tokenizer.encode("The DAM was built"), *ids])
        == "the dam was built"
    )


def test_decoding_from_inside_a_word_shows_no_sign_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("zofie dam")
    assert tokenizer.decode(ids[1:]) == "ofie dam"
    assert tokenizer.decode(tokenizer.encode("## dam")) == "# # dam"


@pytest.mark.parametrize("mark", ["[SEP]", "[CLS]", "[PAD]"])
def test_marks_in_a_text_are_text(tokenizer: Tokenizer, mark: str) -> None:
    ids = tokenizer.encode(f"the {mark} dam")
    assert tokenizer.token_id(mark) is not None
    assert tokenizer.token_id(mark) not in ids
    assert tokenizer.encode_batch([f"the {mark} dam"]) == [ids]


def test_hash_is_the_files(tokenizer: Tokenizer) -> None:
    assert tokenizer.hash == hashlib.sha256(tiny_tokenizer_json().encode()).hexdigest()


def test_vocabulary_is_known_by_size_and_by_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary_size == VOCABULARY
    assert tokenizer.token_id("[CLS]") == 2
    assert tokenizer.token_id("<|endoftext|>") is None
