"""Question-answering files as documents to learn and questions to ask; knows no model.

Formats, plain or xz-compressed: SQuAD's JSON (arXiv 1606.05250, 1806.03822), which SQuADShifts has
too, and FairytaleQA as one question per line (arXiv 2203.13947).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    references: tuple[str, ...]  # empty: unanswerable, the document holds no answer
    document_id: str


def load_questions(path: Path) -> tuple[list[Document], list[SquadQuestion]]:
    """Read a file of either layout: FairytaleQA where its name says JSON lines, else SQuAD.

    Raises:
        InvalidInput: the file has another layout, or holds no question.
    """
    is_lines = ".jsonl" in path.suffixes
    return load_fairytaleqa(path) if is_lines else load_squad_dev(path)


def load_squad_dev(
    path: Path, *, keep_unanswerable: bool = False
) -> tuple[list[Document], list[SquadQuestion]]:
    """Read a SQuAD file: each distinct paragraph once, each question that has a reference.

    Args:
        keep_unanswerable: keep SQuAD 2.0's questions without a reference too.

    Raises:
        InvalidInput: the file is not SQuAD JSON, or holds no question.
    """
    documents: dict[str, Document] = {}  # by paragraph text
    questions: list[SquadQuestion] = []
    try:
        for title, paragraph in _paragraphs(json.loads(_read_text(path))):
            text = paragraph["context"]
            document_id = f"squad-{len(documents):05d}"
            document = documents.setdefault(
                text, Document(id=document_id, title=title.replace("_", " "), text=text)
            )
            asked = _questions(paragraph, document_id=str(document.id))
            questions.extend(q for q in asked if q.references or keep_unanswerable)
    except (KeyError, TypeError, AttributeError, ValueError, lzma.LZMAError) as error:
        raise InvalidInput(f"{path.name} is not SQuAD JSON: {error!r}") from error
    if not any(question.references for question in questions):
        raise InvalidInput(f"{path.name} holds no question with a reference")
    return list(documents.values()), questions


def load_fairytaleqa(path: Path) -> tuple[list[Document], list[SquadQuestion]]:
    """Read FairytaleQA: each distinct section of a story once, each question that has a reference.

    Raises:
        InvalidInput: the file is not FairytaleQA's JSON lines, or holds no question.
    """
    documents: dict[str, Document] = {}  # by section
    questions: list[SquadQuestion] = []
    try:
        # Not splitlines: a JSON string may hold other line separators unescaped.
        rows = [json.loads(line) for line in _read_text(path).split("\n") if line.strip()]
        for number, row in enumerate(rows):
            text, title = row["context"], row["title"].replace("-", " ")
            document_id = f"fairytale-{len(documents):05d}"
            document = documents.setdefault(text, Document(id=document_id, title=title, text=text))
            question = SquadQuestion(
                id=f"fairytale-question-{number:05d}",  # the file's own repeat
                text=row["question"].strip(),
                references=tuple(dict.fromkeys(row["answers"])),
                document_id=str(document.id),
            )
            questions += [question] if question.references else []
    except (KeyError, TypeError, AttributeError, ValueError, lzma.LZMAError) as error:
        raise InvalidInput(f"{path.name} is not FairytaleQA's JSON lines: {error!r}") from error
    if not questions:
        raise InvalidInput(f"{path.name} holds no question with a reference")
    return list(documents.values()), questions


def load_distractors(paths: Sequence[Path], *, known: Sequence[Document]) -> list[Document]:
    """The paragraphs of several files, in order, each once and none that is `known` already.

    Raises:
        InvalidInput: a file of another layout.
    """
    texts = {document.text for document in known}
    distractors: list[Document] = []
    for place, path in enumerate(paths):
        for document in load_questions(path)[0]:
            if document.text not in texts:
                texts.add(document.text)
                distractors.append(replace(document, id=f"distractor-{place}-{document.id}"))
    return distractors


def _read_text(path: Path) -> str:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return str(stream.read())


def _paragraphs(squad: Any) -> Iterator[tuple[str, Any]]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            yield article["title"], paragraph


def _questions(paragraph: Any, *, document_id: str) -> Iterator[SquadQuestion]:
    for item in paragraph["qas"]:
        yield SquadQuestion(
            id=item["id"],
            text=item["question"].strip(),
            references=tuple(dict.fromkeys(answer["text"] for answer in item["answers"])),
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
    """Draw documents, then questions on those documents; both stay in the file's order.

    Raises:
        InvalidInput: no question is on a document that was drawn.
    """
    random = Random(seed)
    kept = _draw(documents, num_documents, random)
    ids = {document.id for document in kept}
    askable = [question for question in questions if question.document_id in ids]
    if not askable:
        raise InvalidInput(
            f"no question is left to ask: of {len(questions)} none is on one of the {len(kept)} "
            f"documents drawn from {len(documents)}; draw more, or by another seed than {seed}"
        )
    return kept, _draw(askable, num_questions, random)


def _draw(items: list[T], count: int | None, random: Random) -> list[T]:
    if count is None or count >= len(items):
        return items
    return [items[index] for index in sorted(random.sample(range(len(items)), count))]
