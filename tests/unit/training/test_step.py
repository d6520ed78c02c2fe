"""One step: what is trained is what runs, and gradients are finite and where they belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mac_core.training.losses as losses
import mac_core.training.step as step
from mac_core.config import PointerConfig
from mac_core.networks.generation import Row
from mac_core.networks.model import AnswerRequest, MacModel
from mac_core.networks.stack import EncoderStack
from mac_core.training.data import Batch
from mac_core.training.past import PastDocuments
from mac_core.training.step import (
    BatchBank,
    Candidates,
    StepConfig,
    choose,
    encode_documents,
    frame,
    selection_only,
    training_loss,
)
from mac_core.types import Mode
from tests.builders import (
    tiny_bert_model,
    tiny_latent_model,
    tiny_layerwise_model,
    tiny_paper_model,
)
from tests.unit.training.samples import (
    paragraphs,
    rows_of,
    sample,
    seeded,
    with_every_occurrence,
)

POINTER = PointerConfig(d_pointer=16)
MODELS: dict[str, Callable[[], MacModel]] = {
    "latent": tiny_latent_model,
    "layerwise-bert": tiny_bert_model,
    "layerwise-llama": lambda: tiny_layerwise_model("llama"),
    "no pointer": lambda: tiny_layerwise_model("gpt2", pointer=None),
    "paper-gpt2": tiny_paper_model,
    "paper-qwen2, pointer": lambda: tiny_paper_model("qwen2", pointer=POINTER),
}
STEPS: dict[str, StepConfig] = {
    "none": StepConfig(mode="none"),
    "text": StepConfig(mode="text"),
    "memory, one": StepConfig(mode="memory", num_documents=1),
    "memory, many": StepConfig(mode="memory", num_documents=3),
    "hybrid, one": StepConfig(mode="hybrid", num_documents=1),
    "hybrid, right text": StepConfig(mode="hybrid", num_documents=3, wrong_text_fraction=0.0),
    "hybrid, wrong text": StepConfig(mode="hybrid", num_documents=3, wrong_text_fraction=1.0),
}
# Parts that a step does not run, by the beginning of their parameters' names.
IDLE: dict[str, tuple[str, ...]] = {
    "none": ("amortization.", "aggregation.", "prefix.", "pointer."),
    "text": ("amortization.", "aggregation.", "prefix.", "pointer.document_key."),
    "memory, one": ("aggregation.", "pointer.text_key."),
    "memory, many": ("pointer.text_key.",),
    "hybrid, one": ("aggregation.",),
    "hybrid, right text": (),
    "hybrid, wrong text": (),
}


@pytest.fixture(params=STEPS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- what is trained is what runs


def served_requests(model: MacModel, batch: Batch, config: StepConfig) -> list[AnswerRequest]:
    """What the engine would ask for the questions of `batch`, with the step's own documents."""
    index, log_prior = chosen_documents(model, batch, config)
    texts = [paragraphs()[i].text for i in batch.paragraph_index.tolist()]
    questions = [item.question for paragraph in paragraphs() for item in paragraph.questions]
    shown = 1 if config.wrong_text_fraction == 1.0 else 0
    modulations = [model.amortize([text])[0] for text in texts]
    keys = [model.aggregation_keys(modulation) for modulation in modulations]
    is_read = config.mode in ("memory", "hybrid")
    return [
        AnswerRequest(
            question=questions[question],
            modulations=tuple(modulations[i] for i in row) if is_read else (),
            aggregation_keys=tuple(keys[i] for i in row) if is_read else (),
            log_prior=tuple(prior) if is_read else (),
            texts=(texts[row[shown]],) if config.mode in ("text", "hybrid") else (),
        )
        for question, row, prior in zip(
            batch.question_index.tolist(), index, log_prior, strict=True
        )
    ]


@torch.no_grad()
def chosen_documents(
    model: MacModel, batch: Batch, config: StepConfig
) -> tuple[list[list[int]], list[list[float]]]:
    framed = frame(model, batch)
    question = model.encode_question_ids(framed.question_ids, framed.question_mask)
    encoded = encode_documents(model, framed)
    bank = BatchBank.of(framed, encoded, None, paragraphs=batch.paragraph_index)
    candidates = Candidates.of(model, question, bank, config)
    chosen = choose(candidates, framed, config, generator=seeded())
    return chosen.index.tolist(), chosen.log_prior.tolist()


def served_loss(
    model: MacModel, batch: Batch, config: StepConfig, monkeypatch: pytest.MonkeyPatch
) -> float:
    """Mean -log p of the answers' tokens and ends as generation assigns them, step by step."""
    wanted = rows_of(batch.answer_ids, batch.answer_mask)
    wanted = [[*answer, model.layout.end_id] for answer in wanted]
    losses: list[float] = []

    def forced(row: Row, probabilities: Tensor, *, likeliest: int) -> int:
        token = wanted[row.index][len(row.token_ids)]
        losses.append(-float(probabilities[token].log()))
        return token

    monkeypatch.setattr(Row, "choose", forced)
    model.answer(served_requests(model, batch, config))
    assert len(losses) == sum(map(len, wanted))
    return sum(losses) / len(losses)


def after_every_token(copy_mask: Tensor, answer_lengths: Tensor) -> Tensor:
    steps = torch.arange(copy_mask.shape[1])
    return (steps == answer_lengths[:, None])[..., None].expand(copy_mask.shape)


@pytest.mark.parametrize("architecture", MODELS)
def test_loss_is_what_generation_assigns_to_the_answers(
    architecture: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = MODELS[architecture](), STEPS[name]
    batch = with_every_occurrence(sample())  # generation adds up all copies of a token
    monkeypatch.setattr(step, "ending_mask", after_every_token)  # and all ends
    monkeypatch.setattr(losses, "START_WEIGHT", 1.0)
    monkeypatch.setattr(losses, "END_WEIGHT", 1.0)
    with torch.no_grad():
        trained = training_loss(model, batch, config, generator=seeded())["answer"]
    served = served_loss(model, batch, config, monkeypatch)
    # float32, read in other shapes and summed over other paddings
    assert float(trained) == pytest.approx(served, rel=1e-4)


# ---- finite everywhere, and only where it belongs


@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_finite_and_reach_every_part_that_ran(name: str, seed: int) -> None:
    model = tiny_bert_model(seed=seed).train()
    losses = training_loss(model, sample(seed=seed), STEPS[name], generator=seeded(seed))
    losses["total"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    moved = {n: p.grad for n, p in model.named_parameters() if not n.startswith(IDLE[name])}
    assert [n for n, gradient in moved.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in moved.values() if gradient is not None)
    idle = [p.grad for n, p in model.named_parameters() if n.startswith(IDLE[name] or ("-",))]
    assert [gradient for gradient in idle if gradient is not None] == []


def test_gradients_are_finite_where_no_answer_can_be_copied() -> None:
    model, batch = tiny_bert_model().train(), sample()
    batch = replace(batch, copy_mask=torch.zeros_like(batch.copy_mask))
    config = STEPS["hybrid, wrong text"]
    training_loss(model, batch, config, generator=seeded())["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- how rows are laid out is without effect


def test_bucketing_does_not_change_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_bert_model(), sample()
    losses: list[dict[str, float]] = []
    for buckets in (1, 4):
        monkeypatch.setattr(step, "NUM_BUCKETS", buckets)
        with torch.no_grad():
            found = training_loss(model, batch, STEPS[name], generator=seeded())
        losses.append({key: float(value) for key, value in found.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@torch.no_grad()
def test_bucketing_does_not_change_what_a_text_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the questions with the right text teach: a bucket may hold few of them, or none.
    model, batch = tiny_latent_model(), sample()
    config = StepConfig(
        mode="hybrid", num_documents=3, distillation_weight=0.5, wrong_text_fraction=0.5
    )
    losses: list[dict[str, float]] = []
    for buckets in (1, 4):
        monkeypatch.setattr(step, "NUM_BUCKETS", buckets)
        found = training_loss(model, batch, config, generator=seeded())
        losses.append({key: float(value) for key, value in found.items()})
    assert losses[1]["distillation"] > 0.0
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def use_written_out_attention(model: MacModel) -> None:
    for part in model.modules():
        if isinstance(part, EncoderStack | PreTrainedModel):
            part.set_attn_implementation("eager")


def test_written_out_attention_gives_the_fused_ones_loss(name: str) -> None:
    # The trainer switches to it on CPUs.
    model, batch = tiny_bert_model(), sample()
    with torch.no_grad():
        fused = training_loss(model, batch, STEPS[name], generator=seeded())["total"]
        use_written_out_attention(model)
        eager = training_loss(model, batch, STEPS[name], generator=seeded())["total"]
    torch.testing.assert_close(eager, fused, rtol=1e-5, atol=1e-5)


def test_frame_puts_marks_around_each_rows_own_tokens() -> None:
    model, batch = tiny_bert_model(), sample()
    framed = frame(model, batch)
    documents = rows_of(batch.document_ids, batch.document_mask)
    assert rows_of(framed.document_ids, framed.document_mask) == [
        model.layout.document(ids) for ids in documents
    ]
    questions = rows_of(batch.question_ids, batch.question_mask)
    assert rows_of(framed.question_ids, framed.question_mask) == [
        model.layout.question(ids) for ids in questions
    ]
    assert rows_of(framed.document_ids, framed.content) == documents


def test_copy_mask_marks_the_answers_own_tokens_after_framing() -> None:
    batch = sample()
    framed = frame(tiny_bert_model(), batch)
    row, place, token = framed.copy_mask.nonzero().unbind(1)
    assert len(row) > 0
    documents = framed.document_ids[framed.right]
    assert torch.equal(documents[row, token], batch.answer_ids[row, place])


# ---- which documents a question reads


@pytest.mark.parametrize("count", [1, 3, 4])
def test_right_document_is_first_and_none_is_twice(count: int) -> None:
    model, batch = tiny_bert_model(), sample()
    config = StepConfig(mode="memory", num_documents=count)
    index, log_prior = chosen_documents(model, batch, config)
    assert [row[0] for row in index] == batch.question_document.tolist()
    assert all(len(set(row)) == count for row in index)
    assert torch.tensor(log_prior).exp().sum(1).tolist() == pytest.approx([1.0] * len(index))


def test_a_step_reads_as_many_documents_as_there_are() -> None:
    model, batch = tiny_latent_model(), sample()
    index, _ = chosen_documents(model, batch, StepConfig(mode="memory", num_documents=9))
    assert {len(row) for row in index} == {len(batch.document_ids)}


@pytest.mark.parametrize("has_late", [False, True])
def test_distractors_are_the_hardest_of_the_batch(has_late: bool) -> None:
    model, batch = (tiny_latent_model() if has_late else tiny_bert_model()), sample()
    config = StepConfig(mode="memory", num_documents=3)
    framed = frame(model, batch)
    with torch.no_grad():
        question = model.encode_question_ids(framed.question_ids, framed.question_mask)
        found = encode_documents(model, framed)
        bank = BatchBank.of(framed, found, None, paragraphs=batch.paragraph_index)
        candidates = Candidates.of(model, question, bank, config)
        index = choose(candidates, framed, config, generator=seeded()).index
        scores = 20.0 * question.selection_query @ found.selection_key.mT
        if has_late:
            late = model.aggregation.late
            scores = scores + late(question, late.keys(found.slots), found.slot_mask)
    others = scores.scatter(1, framed.right[:, None], -torch.inf)
    assert torch.equal(index[:, 1:], others.topk(2, dim=1).indices)


@pytest.mark.parametrize(("mode", "has_selection"), [("memory", True), ("text", False)])
def test_selection_is_learned_where_documents_are_encoded(mode: Mode, has_selection: bool) -> None:
    losses = training_loss(tiny_bert_model(), sample(), StepConfig(mode=mode), generator=seeded())
    assert ("selection" in losses) is has_selection
    weighed = losses["answer"] + 0.3 * losses.get("selection", torch.zeros(()))
    torch.testing.assert_close(losses["total"], weighed)


def test_late_interaction_is_told_the_right_document_from_all_that_it_ranks() -> None:
    model, batch = tiny_latent_model(), sample()
    framed = frame(model, batch)
    late = model.aggregation.late
    losses = training_loss(model, batch, StepConfig(mode="memory"), generator=seeded())
    with torch.no_grad():
        question = model.encode_question_ids(framed.question_ids, framed.question_mask)
        found = encode_documents(model, framed)
        scores = late(question, late.keys(found.slots), found.slot_mask)
    expected = torch.nn.functional.cross_entropy(scores, framed.right)
    torch.testing.assert_close(losses["late"], expected)
    weighed = losses["answer"] + 0.3 * (losses["selection"] + losses["late"])
    torch.testing.assert_close(losses["total"], weighed + 0.5 * losses["evidence"])


# ---- the text's reading teaches the memory's


def test_a_hybrid_step_reads_its_questions_without_the_text_too() -> None:
    model, batch = tiny_latent_model(), sample()
    hybrid = StepConfig(mode="hybrid", distillation_weight=0.25)
    with torch.no_grad():
        found = training_loss(model, batch, hybrid, generator=seeded())
        alone = training_loss(model, batch, StepConfig(mode="memory"), generator=seeded())
        plain = training_loss(model, batch, StepConfig(mode="hybrid"), generator=seeded())
    torch.testing.assert_close(found["student"], alone["answer"])
    torch.testing.assert_close(found["answer"], plain["answer"])
    assert set(found) - set(plain) == {"student", "distillation"}
    more = found["student"] + 0.25 * found["distillation"]
    torch.testing.assert_close(found["total"], plain["total"] + more)
    assert float(found["distillation"]) > 0.0


def test_a_wrong_text_teaches_nothing() -> None:
    config = StepConfig(
        mode="hybrid", num_documents=3, wrong_text_fraction=1.0, distillation_weight=1.0
    )
    losses = training_loss(tiny_latent_model(), sample(), config, generator=seeded())
    assert float(losses["distillation"].detach()) == 0.0


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_only_hybrid_steps_distil(mode: Mode) -> None:
    config = StepConfig(mode=mode, distillation_weight=1.0)
    losses = training_loss(tiny_latent_model(), sample(), config, generator=seeded())
    assert "distillation" not in losses


def test_distractors_learn_to_say_that_they_do_not_answer() -> None:
    model, batch = tiny_latent_model(), sample()
    crowded = training_loss(
        model, batch, StepConfig(mode="memory", num_documents=3), generator=seeded()
    )
    weighed = crowded["answer"] + 0.3 * (crowded["selection"] + crowded["late"] + crowded["null"])
    torch.testing.assert_close(crowded["total"], weighed + 0.5 * crowded["evidence"])
    assert float(crowded["null"].detach()) > 0.0
    alone = training_loss(model, batch, StepConfig(mode="memory"), generator=seeded())
    assert "null" not in alone


# ---- documents of earlier steps


def rows(batch: Batch, chosen: Tensor, *, documents: int) -> Batch:
    """Some of the questions, before the first `documents` of the documents."""
    of_documents = ("document_ids", "document_mask", "paragraph_index")
    of_questions = (
        "question_ids",
        "question_mask",
        "answer_ids",
        "answer_mask",
        "question_document",
        "copy_mask",
        "question_index",
    )
    return replace(
        batch,
        **{name: getattr(batch, name)[:documents] for name in of_documents},
        **{name: getattr(batch, name)[chosen] for name in of_questions},
    )


@pytest.mark.parametrize("mode", ["memory", "hybrid"])
def test_past_documents_are_read_as_the_batchs_own_are(mode: Mode) -> None:
    model, batch, past = tiny_latent_model(), sample(), PastDocuments(8)
    config = StepConfig(mode=mode, num_documents=4, wrong_text_fraction=1.0)
    mine = batch.question_document < 2
    beside = rows(batch, mine, documents=4)
    alone = rows(batch, mine, documents=2)
    with torch.no_grad():
        training_loss(model, batch, config, generator=seeded(), past=past)
        expected = training_loss(model, beside, config, generator=seeded())
        found = training_loss(model, alone, config, generator=seeded(), past=past)
    # 2e-2: slots of the past are bfloat16
    parts = ("answer", "evidence", "late")
    assert {part: float(found[part]) for part in parts} == pytest.approx(
        {part: float(expected[part]) for part in parts}, rel=2e-2
    )
    assert len(past) == 4  # a paragraph that comes again takes its old place


@torch.no_grad()
def test_keys_are_contrasted_with_those_of_the_same_weights_alone() -> None:
    # Keys of earlier steps are told from this one's by drifting, and documents from each other no
    # more: a run of 274,000 questions ended with the right document first for 3 % (experiments.md).
    model, past, config = tiny_latent_model(), PastDocuments(8), StepConfig(mode="memory")
    training_loss(model, sample(), config, generator=seeded(), past=past)
    alone = rows(sample(seed=1), sample(seed=1).question_document < 2, documents=2)
    beside = training_loss(model, alone, config, generator=seeded(), past=past)
    expected = training_loss(model, alone, config, generator=seeded())
    assert len(past) > 2
    torch.testing.assert_close(beside["selection"], expected["selection"])


def test_selection_alone_is_the_selection_loss_of_a_whole_step() -> None:
    model = tiny_latent_model()
    losses = training_loss(model, sample(), StepConfig(mode="memory"), generator=seeded())
    torch.testing.assert_close(selection_only(model, sample(), scale=20.0), losses["selection"])


def test_past_documents_carry_no_gradient_and_the_oldest_leave() -> None:
    model, past = tiny_latent_model(), PastDocuments(3)
    config = StepConfig(mode="memory", num_documents=2)
    training_loss(model, sample(), config, generator=seeded(), past=past)
    keys, places = past.keys(without=torch.tensor([], dtype=torch.int64))
    assert len(past) == len(keys) == 3
    assert not keys.requires_grad
    assert not past.take(places)[2].requires_grad


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_late_interaction_is_told_from_the_hardest_past_document(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Defect 11: negatives that were easy before teach nothing.
    monkeypatch.setattr(step, "NUM_PAST_RANKED", 1)
    model, batch, past = tiny_latent_model(), sample(seed=seed), PastDocuments(8)
    training_loss(model, batch, StepConfig(mode="memory"), generator=seeded(), past=past)
    alone = rows(batch, batch.question_document < 1, documents=1)
    framed, late = frame(model, alone), model.aggregation.late
    question = model.encode_question_ids(framed.question_ids, framed.question_mask)
    found = encode_documents(model, framed)
    bank = BatchBank.of(framed, found, past, paragraphs=alone.paragraph_index)
    hardest = int((question.selection_query @ bank.keys[1:].mT).amax(0).argmax())
    _, _, slots, mask = past.take(bank.places[[hardest]])
    scores = Candidates.of(model, question, bank, StepConfig(mode="memory")).late
    assert scores is not None
    assert len(bank.places) == 3
    torch.testing.assert_close(scores[:, 1:], late(question, late.keys(slots.float()), mask))
