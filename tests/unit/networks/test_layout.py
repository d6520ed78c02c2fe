"""How documents and questions are framed, and how rows are padded."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from mac_core.networks.layout import Layout, pad_rows
from mac_core.tokenization import Tokenizer
from tests.builders import tiny_tokenizer_json


def byte_tokenizer(*specials: str) -> Tokenizer:
    """Every byte a token, and `specials` after them, as GPT-2's family has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.add_special_tokens(list(specials))
    return Tokenizer(fast.to_str())


def test_marks_frame_where_the_vocabulary_has_them() -> None:
    layout = Layout.of(Tokenizer(tiny_tokenizer_json()))
    assert layout.document([7, 8]) == [2, 7, 8, 3]
    assert layout.question([9]) == [2, 9, 3]
    assert (layout.end_id, layout.pad_id) == (3, 0)


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>"])
def test_cues_frame_where_there_are_no_marks(end: str) -> None:
    tokenizer = byte_tokenizer(end)
    layout = Layout.of(tokenizer)
    assert layout.question(tokenizer.encode("Who?")) == tokenizer.encode("Question: Who?\nAnswer:")
    assert layout.document(tokenizer.encode("Dam.")) == tokenizer.encode("Dam.\n\n")
    assert layout.end_id == layout.pad_id == tokenizer.token_id(end)


def test_a_chats_end_of_turn_comes_before_the_end_of_text() -> None:
    tokenizer = byte_tokenizer("<|endoftext|>", "<|im_end|>")
    assert Layout.of(tokenizer).end_id == tokenizer.token_id("<|im_end|>")


def test_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"neither \[SEP\] nor"):
        Layout.of(byte_tokenizer())


def test_rows_are_padded_on_the_right() -> None:
    ids, mask = pad_rows([[5, 6, 7], [], [8]], pad_id=9, device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
