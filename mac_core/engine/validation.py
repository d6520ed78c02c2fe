"""Whether a document or a question can be accepted as it is; says what is wrong, and the limit."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import get_args

from mac_core.errors import DocumentTooLong, InvalidInput
from mac_core.types import Document, MetadataValue, Mode, OnConflict, Question

MAX_ID_CHARS = 256
MAX_TITLE_CHARS = 1000

# Control characters except tab, line feed, vertical tab, form feed and carriage return, and lone
# surrogates, which no encoding can write: what binary data looks like once it is called text.
_BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}


def check_document(document: Document, *, max_chars: int) -> None:
    """
    Raises:
        DocumentTooLong: the text has more than `max_chars` characters.
        InvalidInput: anything else that cannot be stored or learned.
    """
    if len(document.text) > max_chars:
        raise DocumentTooLong(num_chars=len(document.text), max_chars=max_chars)
    if not document.text.strip():
        raise InvalidInput(f"the text is empty: {len(document.text)} characters of white space")
    check_text(document.text, what="the text")
    if document.id is not None:
        check_name(document.id, what="the id")
    if document.title is not None:
        if len(document.title) > MAX_TITLE_CHARS:
            raise InvalidInput(
                f"the title has {len(document.title)} characters, the limit is {MAX_TITLE_CHARS}"
            )
        check_text(document.title, what="the title")
    if document.on_conflict not in get_args(OnConflict):
        raise InvalidInput(
            f"on_conflict={document.on_conflict!r} is not one of {get_args(OnConflict)}"
        )
    _check_times(document)
    _check_metadata(document.metadata)


def check_name(name: str, *, what: str) -> None:
    """An id or a namespace: 1 to 256 characters, no control characters.

    Raises:
        InvalidInput: it is not.
    """
    if not 1 <= len(name) <= MAX_ID_CHARS:
        raise InvalidInput(f"{what} has {len(name)} characters, allowed are 1 to {MAX_ID_CHARS}")
    if not name.strip():
        raise InvalidInput(f"{what} {name!r} is only white space")
    for place, character in enumerate(name):
        if unicodedata.category(character) in _NOT_IN_NAMES:
            raise InvalidInput(f"{what} has a control character U+{ord(character):04X} at {place}")


def check_text(text: str, *, what: str) -> None:
    """
    Raises:
        InvalidInput: it holds control characters or lone surrogates.
    """
    found = _BINARY.search(text)
    if found is not None:
        code = ord(found.group())
        raise InvalidInput(f"{what} is not text: character U+{code:04X} at {found.start()}")


def check_question(question: Question) -> None:
    """
    Raises:
        InvalidInput: the question is empty or an option is out of range.
    """
    if not question.text.strip():
        raise InvalidInput("the question is empty")
    check_text(question.text, what="the question")
    check_name(question.namespace, what="the namespace")
    if question.mode not in get_args(Mode):
        raise InvalidInput(f"mode={question.mode!r} is not one of {get_args(Mode)}")
    if question.top_k is not None and question.top_k < 0:
        raise InvalidInput(f"top_k={question.top_k} is below 0")
    if question.num_readings is not None and question.num_readings < 1:
        raise InvalidInput(f"num_readings={question.num_readings} is below 1")
    if question.max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens={question.max_new_tokens} is below 1")
    if not (math.isfinite(question.temperature) and question.temperature >= 0):
        raise InvalidInput(f"temperature={question.temperature} is not a number from 0 on")
    if not 0.0 <= question.min_confidence <= 1.0:  # nor NaN
        raise InvalidInput(f"min_confidence={question.min_confidence} is not in [0, 1]")
    if question.timeout_ms is not None and math.isnan(question.timeout_ms):
        raise InvalidInput(f"timeout_ms={question.timeout_ms} is not a number")
    _check_metadata(question.filter)


def _check_times(document: Document) -> None:
    if document.ttl_s is not None and not (math.isfinite(document.ttl_s) and document.ttl_s > 0):
        raise InvalidInput(f"ttl_s={document.ttl_s} is not a positive number of seconds")
    if document.published_at is not None and not math.isfinite(document.published_at):
        raise InvalidInput(f"published_at={document.published_at} is not a time")


def _check_metadata(metadata: Mapping[str, MetadataValue]) -> None:
    for key, value in metadata.items():
        check_text(key, what="a metadata key")
        if isinstance(value, str):
            check_text(value, what=f"metadata {key!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"metadata {key!r} is {value}, which JSON cannot hold")
