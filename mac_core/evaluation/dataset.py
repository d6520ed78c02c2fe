"""SQuAD files as documents to learn and questions to ask; knows no model.

Format: the official SQuAD 1.1 JSON (arXiv 1606.05250), plain or xz-compressed.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from mac_core.errors import InvalidInput
from mac_core.types import Document

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SquadQuestion:
    """A question, every accepted answer, and the document that holds it."""

    id: str
    text: str
    references: tuple[str, ...]
    document_id: str


def load_squad_dev(path: Path) -> tuple[list[Document], list[SquadQuestion]]:
    """Read a SQuAD file: each distinct paragraph once, each question that has a reference.

    Raises:
        InvalidInput: the file is not SQuAD JSON, or holds no question.
    """
    documents: dict[str, Document] = {}  # by paragraph text
    questions: list[SquadQuestion] = []
    try:
        for title, paragraph in _paragraphs(_read_json(path)):
            text = paragraph["context"]
            document_id = f"squad-{len(documents):05d}"
            document = documents.setdefault(
                text, Document(id=document_id, title=title.replace("_", " "), text=text)
            )
            questions.extend(_questions(paragraph, document_id=str(document.id)))
    except (KeyError, TypeError, AttributeError, ValueError, lzma.LZMAError) as error:
        raise InvalidInput(f"{path.name} is not SQuAD JSON: {error!r}") from error
    if not questions:
        raise InvalidInput(f"{path.name} holds no question with a reference")
    return list(documents.values()), questions


def _read_json(path: Path) -> Any:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return json.load(stream)


def _paragraphs(squad: Any) -> Iterator[tuple[str, Any]]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            yield article["title"], paragraph


def _questions(paragraph: Any, *, document_id: str) -> Iterator[SquadQuestion]:
    for item in paragraph["qas"]:
        references = tuple(dict.fromkeys(answer["text"] for answer in item["answers"]))
        if references:  # SQuAD 2.0 has questions without: nothing to score them against
            yield SquadQuestion(
                id=item["id"],
                text=item["question"].strip(),
                references=references,
                document_id=document_id,
            )


def sample(
    documents: list[Document],
    questions: list[SquadQuestion],
    *,
    num_documents: int | None = None,
    num_questions: int | None = None,
    seed: int,
) -> tuple[list[Document], list[SquadQuestion]]:
    """Draw documents, then questions on those documents; both stay in the file's order."""
    random = Random(seed)
    kept = _draw(documents, num_documents, random)
    ids = {document.id for document in kept}
    askable = [question for question in questions if question.document_id in ids]
    return kept, _draw(askable, num_questions, random)


def _draw(items: list[T], count: int | None, random: Random) -> list[T]:
    if count is None or count >= len(items):
        return items
    return [items[index] for index in sorted(random.sample(range(len(items)), count))]
