"""The corpora as files, as tokens and as batches; a word-level tokenizer keeps it readable."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mac_core.training.data import (
    EncodedParagraphs,
    Paragraph,
    QuestionAnswer,
    encode_paragraphs,
    load_fairytaleqa,
    load_prose,
    load_squad,
    mine_neighbours,
    sample_batch,
    split_by_article,
)

RIVER = "The river Elbe rises in the mountains and the river ends in the sea"


def ask(question: str, answer: str, text: str) -> QuestionAnswer:
    start = text.find(answer)
    return QuestionAnswer(
        question=question, answers=(answer,), answer_start=start if start >= 0 else None
    )


def paragraph(text: str, *pairs: tuple[str, str], article: str = "a") -> Paragraph:
    questions = tuple(ask(question, answer, text) for question, answer in pairs)
    return Paragraph(text=text, article=article, source="made up", questions=questions)


def corpus() -> list[Paragraph]:
    """Four pairs of lookalikes, one long paragraph, one without questions."""
    pairs = [
        paragraph(
            f"The {thing} number {n} is kept in {place} by {keeper}",
            (f"Where is the {thing} kept ?", place),
            (f"Who keeps the {thing} ?", keeper),
            article=thing,
        )
        for thing in ("crown", "boat", "lamp", "sword")
        for n, place, keeper in ((1, "Paris", "Anna"), (2, "Rome", "Otto"))
    ]
    words = [f"w{i}" for i in range(60)]
    long = paragraph(" ".join(words), ("where ?", "w30 w31"), ("how ?", "w33"), article="long")
    return [*pairs, long, paragraph("Nothing is asked here", article="silent")]


def word_tokenizer(paragraphs: list[Paragraph]) -> Tokenizer:
    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.Whitespace()
    texts = [p.text for p in paragraphs]
    texts += [text for p in paragraphs for q in p.questions for text in (q.question, *q.answers)]
    words = {w for t in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t))}
    vocabulary = {"[UNK]": 0} | {word: i for i, word in enumerate(sorted(words), start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def encode(paragraphs: list[Paragraph]) -> EncodedParagraphs:
    return encode_paragraphs(paragraphs, word_tokenizer(paragraphs))


def write_xz(path: Path, text: str) -> Path:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    answer = {"text": "Elbe", "answer_start": 10}
    questions = [
        {"id": "1", "question": "Which river?", "answers": [answer, answer]},
        {"id": "2", "question": "Which lake?", "answers": [], "is_impossible": True},
    ]
    article = {"title": "Rivers", "paragraphs": [{"context": RIVER, "qas": questions}]}
    return write_xz(tmp_path / "dev-v2.0.json.xz", json.dumps({"data": [article]}))


def test_load_squad_skips_impossible_questions(squad_file: Path) -> None:
    expected = QuestionAnswer(question="Which river?", answers=("Elbe",), answer_start=10)
    assert load_squad(squad_file) == [
        Paragraph(text=RIVER, article="Rivers", source="dev-v2.0", questions=(expected,))
    ]


def test_load_squad_keeps_impossible_questions_when_asked(squad_file: Path) -> None:
    kept = load_squad(squad_file, keep_impossible=True)[0].questions[1]
    assert kept == QuestionAnswer(question="Which lake?", answers=(), answer_start=None)


def test_load_squad_reads_plain_json(tmp_path: Path, squad_file: Path) -> None:
    plain = tmp_path / "dev-v2.0.json"
    plain.write_text(lzma.decompress(squad_file.read_bytes()).decode(), encoding="utf-8")
    assert load_squad(plain) == load_squad(squad_file)


def test_load_fairytaleqa_joins_sections_and_finds_answers_in_any_case(tmp_path: Path) -> None:
    context = "İn those days lived A Farmer."  # its first letter lower-cases to two characters
    rows = [
        {"context": context, "question": "Who lived?", "answers": ["a farmer"], "title": "t"},
        {"context": context, "question": "Why?", "answers": ["he was born"], "title": "t"},
    ]
    path = write_xz(tmp_path / "f.jsonl.xz", "\n".join(map(json.dumps, rows)))
    (section,) = load_fairytaleqa(path)
    assert [q.answer_start for q in section.questions] == [context.index("A Farmer"), None]
    assert section.article == "t"


def test_load_prose_cuts_passages_and_loses_no_word(tmp_path: Path) -> None:
    text = "Title\n\n" + "A short sentence here. " * 20 + "\nEnd of it."
    path = write_xz(tmp_path / "p.jsonl.xz", json.dumps({"text": text, "source": "book"}))
    passages = load_prose(path, min_chars=40, max_chars=100)
    assert " ".join(p.text for p in passages).split() == text.split()
    assert max(len(p.text) for p in passages) <= 100 + len(" A short sentence here.")
    assert {p.article for p in passages} == {"book"}


def test_split_by_article_never_shares_an_article() -> None:
    paragraphs = corpus()
    train, held_out = split_by_article(paragraphs, held_out_fraction=0.4, seed=1)
    assert len(train) + len(held_out) == len(paragraphs)
    assert {p.article for p in train}.isdisjoint({p.article for p in held_out})
    assert len({p.article for p in held_out}) == 2  # round(0.4 * 6)


def test_split_by_article_refuses_a_fraction_outside_the_range() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        split_by_article(corpus(), held_out_fraction=1.5, seed=1)


def test_encode_refuses_a_tokenizer_that_truncates() -> None:
    tokenizer = word_tokenizer(corpus())
    tokenizer.enable_truncation(8)
    with pytest.raises(ValueError, match="truncates"):
        encode_paragraphs(corpus(), tokenizer)


def test_encode_finds_every_occurrence_the_annotated_one_first() -> None:
    annotated = QuestionAnswer(
        question="?", answers=("the river",), answer_start=RIVER.rindex("the river")
    )
    absent = QuestionAnswer(question="?", answers=("river sea",), answer_start=None)
    one = Paragraph(text=RIVER, article="a", source="s", questions=(annotated, absent))
    encoded = encode([one])
    assert encoded.spans[0].tolist() == [[8, 2], [0, 2]]
    assert encoded.spans[1].tolist() == []


def test_encode_offsets_give_back_the_words() -> None:
    encoded = encode([paragraph(RIVER, ("?", "Elbe"))])
    assert [RIVER[a:b] for a, b in encoded.document_offsets[0].tolist()] == RIVER.split()


def test_encode_keeps_unanswerable_questions_without_tokens() -> None:
    silent = QuestionAnswer(question="Which lake ?", answers=(), answer_start=None)
    one = Paragraph(text=RIVER, article="a", source="s", questions=(silent,))
    encoded = encode([one])
    assert len(encoded.answer_ids[0]) == 0
    assert len(encoded.spans[0]) == 0


def test_mined_neighbours_share_the_subject_and_exclude_the_paragraph() -> None:
    neighbours = mine_neighbours(encode(corpus()), num_neighbours=3)
    assert neighbours[:8, 0].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert (neighbours != np.arange(len(neighbours))[:, None]).all()


def test_mined_neighbours_are_padded_in_a_small_corpus() -> None:
    neighbours = mine_neighbours(encode(corpus()[:2]), num_neighbours=3)
    assert neighbours.tolist() == [[1, -1, -1], [0, -1, -1]]


def test_batch_places_a_neighbour_after_each_paragraph() -> None:
    encoded = encode(corpus())
    neighbours = mine_neighbours(encoded, num_neighbours=1)
    batch = sample_batch(
        encoded,
        neighbours,
        rng=np.random.default_rng(0),
        num_paragraphs=6,
        questions_per_paragraph=2,
    )
    first, second = batch.paragraph_index.reshape(-1, 2).T.tolist()
    articles = [p.article for p in encoded.paragraphs]
    short = [(a, b) for a, b in zip(first, second, strict=True) if articles[a] != "long"]
    assert [articles[a] for a, _ in short] == [articles[b] for _, b in short]
    assert len(set(batch.paragraph_index.tolist())) == 6


@pytest.mark.parametrize("seed", range(5))
def test_batch_of_the_whole_corpus_takes_each_paragraph_with_questions_once(seed: int) -> None:
    encoded = encode(corpus())
    batch = sample_batch(
        encoded,
        mine_neighbours(encoded),
        rng=np.random.default_rng(seed),
        num_paragraphs=9,
        questions_per_paragraph=1,
    )
    assert sorted(batch.paragraph_index.tolist()) == list(range(9))


def test_batch_refuses_more_paragraphs_than_have_questions() -> None:
    encoded = encode(corpus())
    with pytest.raises(ValueError, match="9 paragraphs have questions, asked for 10"):
        sample_batch(
            encoded,
            None,
            rng=np.random.default_rng(0),
            num_paragraphs=10,
            questions_per_paragraph=1,
        )


def test_batch_draws_with_replacement_only_when_questions_run_out() -> None:
    encoded = encode(corpus())
    rng = np.random.default_rng(0)
    two = sample_batch(encoded, None, rng=rng, num_paragraphs=9, questions_per_paragraph=2)
    assert len(set(two.question_index.tolist())) == 18
    three = sample_batch(encoded, None, rng=rng, num_paragraphs=9, questions_per_paragraph=3)
    assert len(three.question_index) == 27
    owner = encoded.question_paragraph[three.question_index.numpy()]
    assert owner.tolist() == three.paragraph_index[three.question_document].tolist()


def test_batch_copy_mask_marks_the_answer_tokens_in_the_cropped_document() -> None:
    encoded = encode(corpus())
    batch = sample_batch(
        encoded,
        None,
        rng=np.random.default_rng(0),
        num_paragraphs=9,
        questions_per_paragraph=2,
        max_tokens=20,
    )
    assert batch.document_ids.shape == (9, 20)
    assert batch.copy_mask.any(dim=-1).equal(batch.answer_mask)  # all answers are literal here
    row, answer_token, position = batch.copy_mask.nonzero(as_tuple=True)
    copied = batch.document_ids[batch.question_document[row], position]
    assert copied.equal(batch.answer_ids[row, answer_token])
    assert batch.document_mask[batch.question_document[row], position].all()


def test_batch_copy_mask_marks_every_occurrence() -> None:
    encoded = encode([paragraph(RIVER, ("?", "river"))])
    batch = sample_batch(
        encoded, None, rng=np.random.default_rng(0), num_paragraphs=1, questions_per_paragraph=1
    )
    assert batch.copy_mask[0, 0].nonzero().flatten().tolist() == [1, 9]


def test_batch_drops_the_span_that_no_window_can_hold() -> None:
    text = " ".join(f"w{i}" for i in range(60))
    encoded = encode([paragraph(text, ("first ?", "w0"), ("last ?", "w59"))])
    batch = sample_batch(
        encoded,
        None,
        rng=np.random.default_rng(0),
        num_paragraphs=1,
        questions_per_paragraph=2,
        max_tokens=20,
    )
    assert sorted(batch.copy_mask.flatten(1).any(dim=1).tolist()) == [False, True]


def test_batch_truncates_long_answers() -> None:
    encoded = encode([paragraph(RIVER, ("?", RIVER))])
    batch = sample_batch(
        encoded,
        None,
        rng=np.random.default_rng(0),
        num_paragraphs=1,
        questions_per_paragraph=1,
        max_answer_tokens=5,
    )
    assert batch.answer_ids.shape == (1, 5)
    assert batch.copy_mask[0].nonzero().tolist() == [[i, i] for i in range(5)]


def test_batch_of_unanswerable_questions_has_an_empty_answer_mask() -> None:
    silent = QuestionAnswer(question="Which lake ?", answers=(), answer_start=None)
    encoded = encode([Paragraph(text=RIVER, article="a", source="s", questions=(silent,))])
    batch = sample_batch(
        encoded, None, rng=np.random.default_rng(0), num_paragraphs=1, questions_per_paragraph=1
    )
    assert not batch.answer_mask.any()
    assert not batch.copy_mask.any()


def test_batch_is_repeatable_by_seed() -> None:
    encoded = encode(corpus())
    neighbours = mine_neighbours(encoded)
    first, second = (
        sample_batch(
            encoded,
            neighbours,
            rng=np.random.default_rng(7),
            num_paragraphs=4,
            questions_per_paragraph=2,
            max_tokens=8,
        )
        for _ in range(2)
    )
    torch.testing.assert_close(first.document_ids, second.document_ids)
    assert first.question_index.equal(second.question_index)
