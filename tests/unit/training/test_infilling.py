"""Questions made from prose: what they ask for stands where they say, and is not in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mac_core.engine.spans import words_of
from mac_core.training.corpora import Paragraph
from mac_core.training.infilling import QUESTIONS_PER_PASSAGE, load_infilling, with_infilling

PASSAGE = (
    "In the long summer of that year, engineers from Hamburg Harbour raised the old granite bridge "
    "over the river. They counted 4,200 wagons a day before it was closed to all of them in 1921. "
    "Most people of the city would still take the slow ferry to reach their work."
)


def passage(text: str, article: str = "a") -> Paragraph:
    return Paragraph(text=text, article=article, source="prose")


def asked(text: str) -> dict[str, str]:
    """Questions by answer."""
    return {
        question.answers[0]: question.question
        for paragraph in with_infilling([passage(text)])
        for question in paragraph.questions
    }


RISE = "We have seen it rise again and again before it fell"


@pytest.mark.parametrize(
    ("sentence", "answer", "asked_by"),
    [
        ("It was told us once more how all of Hamburg Harbour do it.", "Hamburg Harbour", "who or"),
        (f"{RISE} in 1921 for us.", "1921", "which year"),
        (f"{RISE} by 12.5 percent for us.", "12.5 percent", "how many"),
        (f"{RISE} to the granite bridge where it is.", "granite bridge", "what"),
    ],
)
def test_names_numbers_and_what_follows_an_article_are_asked_for(
    sentence: str, answer: str, asked_by: str
) -> None:
    found = asked(sentence)
    assert set(found) == {answer}
    assert f" {asked_by}" in found[answer]
    assert found[answer].endswith("?")


def test_every_answer_stands_where_it_is_said_to_and_not_in_its_question() -> None:
    (made,) = with_infilling([passage(PASSAGE)])
    assert 1 <= len(made.questions) <= QUESTIONS_PER_PASSAGE
    for question in made.questions:
        (answer,) = question.answers
        assert question.answer_start is not None
        assert made.text[question.answer_start :].startswith(answer)
        assert answer.lower() not in question.question.lower()


def test_sentences_are_asked_about_once_and_words_are_theirs() -> None:
    (made,) = with_infilling([passage(PASSAGE)])
    ends = [place for place, character in enumerate(PASSAGE) if character == "."]
    sentences = [sum(end < (q.answer_start or 0) for end in ends) for q in made.questions]
    assert len(sentences) == len(set(sentences)) > 1
    words = set(words_of(PASSAGE)) | {"who", "or", "what", "which", "year", "how", "many"}
    assert all(set(words_of(question.question)) <= words for question in made.questions)


def test_a_passages_questions_do_not_depend_on_the_others() -> None:
    alone = with_infilling([passage(PASSAGE)])
    other = "All of the council of the city had asked for the new bridge before it was there."
    both = with_infilling([passage(other, "b"), passage(PASSAGE)])
    assert [p for p in both if p.article == "a"] == alone
    assert alone == with_infilling([passage(PASSAGE)])


def test_passages_without_anything_to_ask_for_are_left_out() -> None:
    assert with_infilling([passage("Yes. No. So it is."), passage("")]) == []


@given(st.text(alphabet="the The Aa1.,! of\n", max_size=300))
def test_any_text_gives_questions_whose_answers_stand_in_it(text: str) -> None:
    for made in with_infilling([passage(text)]):
        for question in made.questions:
            start = question.answer_start
            assert start is not None
            assert made.text[start : start + len(question.answers[0])] == question.answers[0] != ""


def test_prose_is_read_as_passages_with_their_questions(tmp_path: Path) -> None:
    file = tmp_path / "prose.jsonl"
    line = {"text": " ".join([PASSAGE] * 3), "source": "book"}
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    found = load_infilling(file)
    assert {p.article for p in found} == {"book"}
    assert {p.source for p in found} == {"infilling"}
    assert all(p.questions for p in found)
