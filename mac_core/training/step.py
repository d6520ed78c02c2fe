"""One training step: a batch of paragraphs and questions, one mode, one loss.

The model's own parts are called, in the order in which the engine calls them; only the choice of
documents differs: the right one, with the hardest of the batch as distractors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.networks.model import MacModel, text_memory
from mac_core.networks.pointer import PointerHead, PointerMemory
from mac_core.networks.reading import TextState, read, read_text, start
from mac_core.networks.select import SelectAggregation
from mac_core.networks.values import (
    BankSlice,
    DocumentEncoding,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)
from mac_core.training.data import Batch
from mac_core.training.losses import answer_loss, selection_loss
from mac_core.types import Mode

NUM_BUCKETS = 4  # documents of like length are encoded together: less padding
# Lengths are rounded up: a matrix product of a shape never seen costs its kernel's set-up again.
DOCUMENT_ROUND = 32
QUESTION_ROUND = 8
ANSWER_ROUND = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What one step trains."""

    mode: Mode
    num_documents: int = 1  # the right one and its distractors
    selection_weight: float = 0.3
    selection_scale: float = 20.0
    wrong_text_fraction: float = 0.2  # hybrid: questions whose prompt holds a distractor's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """A batch with its markers on."""

    document_ids: Tensor  # (documents, tokens)
    document_mask: Tensor
    content: Tensor  # (documents, tokens), bool: what may be copied
    copy_mask: Tensor  # (questions, steps, tokens), one step after the answer's tokens and more
    question_ids: Tensor  # (questions, question_tokens)
    question_mask: Tensor
    right: Tensor  # (questions,), index of the right document


def frame(model: MacModel, batch: Batch) -> Framed:
    """Put the base LM's markers around documents and questions."""
    layout, device = model.layout, model.device
    head, tail = layout.document_head, layout.document_tail
    document_ids, document_mask = _framed(batch.document_ids, batch.document_mask, head, tail)
    content, _ = _framed(
        batch.document_mask.long(), batch.document_mask, (0,) * len(head), (0,) * len(tail)
    )
    question_ids, question_mask = _framed(
        batch.question_ids, batch.question_mask, layout.question_head, layout.question_tail
    )
    ends = 1 + -batch.answer_ids.shape[1] % ANSWER_ROUND  # nothing copies the end, nor padding
    copy_mask = F.pad(batch.copy_mask, (len(head), len(tail), 0, ends))
    after = (0, -document_ids.shape[1] % DOCUMENT_ROUND)
    return Framed(
        document_ids=F.pad(document_ids, after).to(device),
        document_mask=F.pad(document_mask, after).to(device),
        content=F.pad(content.bool(), after).to(device),
        copy_mask=F.pad(copy_mask, after).to(device),
        question_ids=question_ids.to(device),
        question_mask=question_mask.to(device),
        right=batch.question_document.to(device),
    )


def training_loss(
    model: MacModel, batch: Batch, config: StepConfig, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of one step by name; `total` is what is minimised."""
    framed = frame(model, batch)
    prefix: Prefix | None = None
    text: TextState | None = None
    memory: PointerMemory | None = None
    copy_mask: Tensor | None = None
    losses: dict[str, Tensor] = {}
    if config.mode in ("memory", "hybrid"):
        question = model.encode_question_ids(framed.question_ids, framed.question_mask)
        encoded = encode_documents(model, framed)
        losses["selection"] = selection_loss(
            question.selection_query,
            encoded.selection_key,
            framed.right,
            scale=config.selection_scale,
        )
        chosen = choose(question, encoded, framed, config, generator=generator)
        prefix = aggregate(model, question, encoded, chosen)
        if model.pointer is not None:
            memory = document_memory(model.pointer, model, framed, encoded, chosen)
            others = memory.keys.shape[1] - framed.copy_mask.shape[-1]
            copy_mask = F.pad(framed.copy_mask, (0, others))
        shown = chosen.shown(config.wrong_text_fraction, generator=generator)
        prior = chosen.log_prior[:, :1].tolist()
    else:
        shown, prior = framed.right, [[] for _ in framed.right]
    if config.mode in ("text", "hybrid"):
        text = read_documents(model, framed).rows(shown)
        copied = text_memory(model, text, prior) if model.pointer is not None else None
        right = (shown == framed.right)[:, None, None]
        text_mask = framed.copy_mask & right
        if copied is not None:
            memory = copied if memory is None else memory.beside(copied)
            copy_mask = (
                text_mask if copy_mask is None else torch.cat([copy_mask, text_mask], dim=-1)
            )
    losses["answer"] = read_answers(model, batch, framed, prefix, text, memory, copy_mask)
    losses["total"] = losses["answer"] + config.selection_weight * losses.get(
        "selection", torch.zeros((), device=model.device)
    )
    return losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The documents each question reads, the right one first."""

    index: Tensor  # (questions, documents)
    log_prior: Tensor  # (questions, documents)

    def shown(self, wrong_fraction: float, *, generator: torch.Generator) -> Tensor:
        """Whose text stands in the prompt: the right one's or, at times, the hardest other's."""
        if self.index.shape[1] == 1:
            return self.index[:, 0]
        wrong = torch.rand(len(self.index), generator=generator) < wrong_fraction
        return torch.where(wrong.to(self.index.device), self.index[:, 1], self.index[:, 0])


def choose(
    question: QuestionEncoding,
    encoded: DocumentEncoding,
    framed: Framed,
    config: StepConfig,
    *,
    generator: torch.Generator,
) -> Chosen:
    """The right document and the batch's best-scoring others, with their log-prior.

    The prior is flattened at random, so that reading does not lean on selection alone.
    """
    cosine = question.selection_query @ encoded.selection_key.mT  # (questions, documents)
    hidden_right = cosine.detach().scatter(1, framed.right[:, None], torch.inf)
    index = hidden_right.topk(config.num_documents, dim=1).indices  # the right one is first
    trust = 0.2 + 0.8 * torch.rand(len(index), 1, generator=generator).to(cosine.device)
    scores = config.selection_scale * trust * cosine.gather(1, index)
    return Chosen(index=index, log_prior=torch.log_softmax(scores, dim=1))


def aggregate(
    model: MacModel, question: QuestionEncoding, encoded: DocumentEncoding, chosen: Chosen
) -> Prefix:
    """Prefix per question.

    Where slots are selected, a single document keeps all of them, unweighed, and is projected once
    for all its questions.
    """
    index = chosen.index
    if index.shape[1] == 1 and isinstance(model.aggregation, SelectAggregation):
        flat = torch.zeros(encoded.slot_mask.shape, device=index.device)
        whole = TargetModulation(
            slots=encoded.slots,
            log_bias=flat.masked_fill(~encoded.slot_mask, -torch.inf),
            document_mass=flat[:, :1],
        )
        prefix: Prefix = model.prefix(whole)
        return prefix.rows(index[:, 0])
    keys = model.aggregation.keys(encoded.slots, encoded.slot_mask)
    bank = BankSlice(
        slots=encoded.slots[index], mask=encoded.slot_mask[index], log_prior=chosen.log_prior
    )
    target: TargetModulation = model.aggregation(question, bank, keys.select(index))
    many: Prefix = model.prefix(target)
    return many


def document_memory(
    pointer: PointerHead,
    model: MacModel,
    framed: Framed,
    encoded: DocumentEncoding,
    chosen: Chosen,
) -> PointerMemory:
    """Pointer keys of each question's documents, laid end to end."""
    embeddings = model.base_lm.input_embeddings(framed.document_ids)
    keys = pointer.document_keys(encoded.states, embeddings)
    prior = chosen.log_prior[:, :, None].expand(*chosen.index.shape, keys.shape[1])
    prior = prior.masked_fill(~framed.content[chosen.index], -torch.inf)
    return PointerMemory(
        keys=keys[chosen.index].flatten(1, 2),
        token_ids=framed.document_ids[chosen.index].flatten(1, 2),
        log_prior=prior.flatten(1, 2),
    )


def read_answers(
    model: MacModel,
    batch: Batch,
    framed: Framed,
    prefix: Prefix | None,
    text: TextState | None,
    memory: PointerMemory | None,
    copy_mask: Tensor | None,
) -> Tensor:
    """Loss of the annotated answers behind their questions, those of like length together."""
    lengths = framed.question_mask.sum(1) + batch.answer_mask.sum(1).to(model.device)
    total = torch.zeros((), device=model.device)
    for rows in lengths.argsort().chunk(NUM_BUCKETS):
        loss, count = _read_rows(
            model,
            _cut(framed.question_ids, framed.question_mask, rows, QUESTION_ROUND),
            _cut(
                batch.answer_ids.to(model.device),
                batch.answer_mask.to(model.device),
                rows,
                ANSWER_ROUND,
            ),
            prefix=None if prefix is None else prefix.rows(rows),
            text=None if text is None else text.rows(rows),
            memory=None if memory is None else memory.rows(rows),
            copy_mask=None if copy_mask is None else copy_mask[rows],
        )
        total = total + loss * count
    return total / (batch.answer_mask.sum() + len(lengths))


def _read_rows(
    model: MacModel,
    question: tuple[Tensor, Tensor],
    answer: tuple[Tensor, Tensor],
    *,
    prefix: Prefix | None,
    text: TextState | None,
    memory: PointerMemory | None,
    copy_mask: Tensor | None,
) -> tuple[Tensor, int]:
    """Mean loss of some rows, teacher-forced, and over how many targets."""
    (question_ids, question_mask), (answer_ids, answer_mask) = question, answer
    num_steps = answer_ids.shape[1] + 1
    steps = torch.arange(num_steps, device=model.device)
    where = question_mask.sum(1, keepdim=True) - 1 + steps  # (rows, steps): before each target
    ids = F.pad(question_ids, (0, num_steps - 1)).scatter(1, where[:, 1:], answer_ids)
    mask = F.pad(question_mask, (0, num_steps - 1)).scatter(1, where[:, 1:], answer_mask)
    context = start(model.base_lm, batch=len(ids), prefix=prefix, text=text, like=ids)
    hidden = read(model.base_lm, context, ids, mask)
    targets = F.pad(answer_ids, (0, 1)).scatter(
        1, answer_mask.sum(1, keepdim=True), model.layout.end_id
    )
    target_mask = F.pad(answer_mask, (1, 0), value=True)
    loss = answer_loss(
        model.base_lm,
        model.pointer,
        hidden=hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1])),
        last=model.base_lm.input_embeddings(ids.gather(1, where)),
        targets=targets,
        target_mask=target_mask,
        copy_mask=None if copy_mask is None else copy_mask[:, :num_steps],
        memory=memory,
    )
    return loss, int(target_mask.sum())


def _cut(ids: Tensor, mask: Tensor, rows: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Some rows, cut or padded to the longest of them, rounded up to a multiple."""
    longest = int(mask[rows].sum(1).max())
    length = -(-longest // multiple) * multiple
    after = (0, max(0, length - ids.shape[1]))
    return F.pad(ids[rows], after)[:, :length], F.pad(mask[rows], after)[:, :length]


def encode_documents(model: MacModel, framed: Framed) -> DocumentEncoding:
    """Amortize the batch's documents, those of like length together."""
    parts, back = [], list[Tensor]()
    for rows, ids, mask in _buckets(framed):
        parts.append(model.encode_documents(ids, mask))
        back.append(rows)
    inverse = torch.cat(back).argsort()
    return DocumentEncoding(
        slots=_joined([part.slots for part in parts], dim=1)[inverse],
        slot_mask=_joined([part.slot_mask for part in parts], dim=1)[inverse],
        selection_key=torch.cat([part.selection_key for part in parts])[inverse],
        states=_joined([part.states for part in parts], dim=1)[inverse],
    )


def read_documents(model: MacModel, framed: Framed) -> TextState:
    """Let the base LM read the batch's documents, those of like length together."""
    parts, back = [], list[Tensor]()
    for rows, ids, mask in _buckets(framed):
        parts.append(read_text(model.base_lm, ids, mask))
        back.append(rows)
    inverse = torch.cat(back).argsort()
    layers = range(model.base_lm.num_layers)
    return TextState(
        ids=framed.document_ids,
        mask=framed.document_mask,
        keys=tuple(_joined([p.keys[i] for p in parts], dim=2)[inverse] for i in layers),
        values=tuple(_joined([p.values[i] for p in parts], dim=2)[inverse] for i in layers),
        hidden=_joined([part.hidden for part in parts], dim=1)[inverse],
    )


def _buckets(framed: Framed) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows by length: (row numbers, ids, mask), each cut to its longest."""
    order = framed.document_mask.sum(1).argsort()
    return [
        (rows, *_cut(framed.document_ids, framed.document_mask, rows, DOCUMENT_ROUND))
        for rows in order.chunk(NUM_BUCKETS)
    ]


def _joined(parts: Sequence[Tensor], *, dim: int) -> Tensor:
    """Concatenate along the batch, padding `dim` with zeros to the longest."""
    longest = max(part.shape[dim] for part in parts)
    padded = []
    for part in parts:
        after = [0, 0] * (part.ndim - 1 - dim) + [0, longest - part.shape[dim]]
        padded.append(F.pad(part, after))
    return torch.cat(padded)


def _framed(
    ids: Tensor, mask: Tensor, head: tuple[int, ...], tail: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Right-padded rows with markers before and after each row's own tokens."""
    lengths = mask.sum(1, keepdim=True)
    before = torch.tensor(head, dtype=ids.dtype).expand(len(ids), -1)
    framed = F.pad(torch.cat([before, ids * mask], dim=1), (0, len(tail)))
    where = len(head) + lengths + torch.arange(len(tail))
    marks = torch.tensor(tail, dtype=ids.dtype).expand(len(ids), -1)
    framed = framed.scatter(1, where, marks)
    length = torch.arange(framed.shape[1])
    return framed, length < len(head) + lengths + len(tail)
