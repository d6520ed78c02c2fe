"""Text to token ids and back, with character offsets; one fast tokenizer per bundle.

Adds no special token by itself: which ones frame a document or a question is the base LM's layout.
Nor does text: a literal `[SEP]` in a document is three pieces like any other, never the mark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tokenizers import Tokenizer as FastTokenizer


class Tokenizer:
    """A `tokenizer.json` with padding and truncation switched off. Any thread."""

    def __init__(self, tokenizer_json: str) -> None:
        self.json = tokenizer_json
        self.hash = hashlib.sha256(tokenizer_json.encode()).hexdigest()
        self._fast = FastTokenizer.from_str(tokenizer_json)
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = True
        decoder = json.loads(tokenizer_json).get("decoder") or {}
        self._continuation = decoder["prefix"] if decoder.get("type") == "WordPiece" else ""

    @property
    def vocabulary_size(self) -> int:
        return int(self._fast.get_vocab_size())

    def token_id(self, token: str) -> int | None:
        """The id of a literal token such as `[SEP]`; None when the vocabulary lacks it."""
        found = self._fast.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str) -> list[int]:
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._fast.encode_batch(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, for each, its half-open character range in `text`."""
        encoding = self._fast.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; WordPiece's `##` is nobody's text, also where a word is begun inside.

        Text that begins with a literal `##` is two marks to WordPiece, and keeps them.
        """
        text = str(self._fast.decode(list(ids), skip_special_tokens=True))
        return text.removeprefix(self._continuation) if self._continuation else text
