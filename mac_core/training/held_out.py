"""Held-out train articles, as the documents and questions that calibration asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mac_core.evaluation.dataset import SquadQuestion
from mac_core.training.corpora import Paragraph
from mac_core.types import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out paragraphs as documents, and their questions."""

    documents: tuple[Document, ...]
    questions: tuple[SquadQuestion, ...]

    @classmethod
    def of(cls, paragraphs: Sequence[Paragraph]) -> HeldOut:
        documents, questions = list[Document](), list[SquadQuestion]()
        for number, paragraph in enumerate(paragraphs):
            name = f"held-out-{number:05d}"
            documents.append(Document(id=name, title=paragraph.article, text=paragraph.text))
            questions += [
                SquadQuestion(
                    id=f"{name}-{place}",
                    text=question.question,
                    references=question.answers,
                    document_id=name,
                )
                for place, question in enumerate(paragraph.questions)
                if question.answers
            ]
        return cls(documents=tuple(documents), questions=tuple(questions))

    def documents_of_every_other_article(self) -> set[str]:
        """Ids of the documents of half of the articles, none of which is shared with the rest."""
        articles = list(dict.fromkeys(document.title for document in self.documents))
        kept = set(articles[::2])
        return {str(document.id) for document in self.documents if document.title in kept}

    def sample(self, count: int, *, seed: int) -> tuple[SquadQuestion, ...]:
        """Some of the questions, drawn without replacement."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.questions), generator=generator).tolist()
        return tuple(self.questions[index] for index in sorted(order[:count]))
