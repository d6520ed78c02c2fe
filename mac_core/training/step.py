"""One training step: a batch of paragraphs and questions, one mode, one loss.

The model's own parts are called, in the order in which the engine calls them; only the choice of
documents differs: the right one, with the hardest of the batch as distractors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.networks.batching import slot_origin
from mac_core.networks.model import MacModel, copyable, slot_memory, text_memory
from mac_core.networks.pointer import PointerMemory, ending_mask, shifted
from mac_core.networks.prompt import Ids, Prompt, join, make_prompt
from mac_core.networks.reading import read_prompt, read_with_answer, start
from mac_core.networks.refine import RefineAggregation
from mac_core.networks.select import SelectAggregation
from mac_core.networks.values import (
    BankSlice,
    DocumentEncoding,
    Origin,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)
from mac_core.training.data import Batch
from mac_core.training.losses import (
    AnswerStates,
    answer_loss,
    distillation_loss,
    evidence_loss,
    null_loss,
    selection_loss,
    target_weights,
)
from mac_core.training.past import PastDocuments
from mac_core.training.spans import SpanHeads, span_loss
from mac_core.types import Mode

NUM_PAST_RANKED = 64  # past documents that late interaction ranks beside the batch's own
# Rows of like length go together: less padding. A GPU computes padding sooner than it is told of
# twice as many parts.
NUM_BUCKETS, NUM_GPU_BUCKETS = 4, 2
# Lengths are rounded up: a matrix product of a shape never seen costs its kernel's set-up again.
DOCUMENT_ROUND = 32
QUESTION_ROUND = 8
ANSWER_ROUND = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What one step trains."""

    mode: Mode
    num_documents: int = 1  # the right one and its distractors
    answers: bool = True  # no: what is read is only asked where the answer stands
    selection_weight: float = 0.3
    late_weight: float = 0.3
    evidence_weight: float = 0.5
    span_weight: float = 1.0
    null_weight: float = 0.3
    # hybrid: what is read with the text teaches the same questions read without it; 0: nothing.
    distillation_weight: float = 0.0
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
    ends = 1 + -batch.answer_ids.shape[1] % ANSWER_ROUND  # no token copies the end, nor padding
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
    model: MacModel,
    batch: Batch,
    config: StepConfig,
    *,
    generator: torch.Generator,
    past: PastDocuments | None = None,
    spans: SpanHeads | None = None,
) -> dict[str, Tensor]:
    """Losses of one step by name; `total` is what is minimised.

    Args:
        past: documents of earlier steps, to which this batch's are added; None: there are none.
        spans: asked where the answers begin and end; None: nothing is.
    """
    framed = frame(model, batch)
    prefix: Prefix | None = None
    copied: Copied | None = None
    shown = framed.right
    losses: dict[str, Tensor] = {}
    if config.mode in ("memory", "hybrid"):
        question = model.encode_question_ids(framed.question_ids, framed.question_mask)
        encoded = encode_documents(model, framed)
        bank = BatchBank.of(framed, encoded, past, paragraphs=batch.paragraph_index)
        # Not against the past: its keys are of older weights, and the easiest way to tell them from
        # this step's is to drift, all keys together, until they tell no document from another.
        losses["selection"] = selection_loss(
            question.selection_query,
            encoded.selection_key,
            framed.right,
            scale=config.selection_scale,
        )
        candidates = Candidates.of(model, question, bank, config)
        if candidates.late is not None:
            losses["late"] = F.cross_entropy(candidates.late, framed.right)
        chosen = choose(candidates, framed, config, generator=generator)
        framed, encoded, chosen = bank.laid_out(chosen)
        shown = chosen.shown(config.wrong_text_fraction, generator=generator)
        if model.points_at_slots:
            target = aggregate_slots(model, question, encoded, chosen, framed)
            prefix = model.prefix(target)
            copied = Copied.of_slots(model, framed, target)
            losses["evidence"] = evidence_loss(target.log_bias, copied.mask.any(1))
            if spans is not None:
                losses["span"] = slot_span_loss(spans, batch, target, copied)
            if target.log_null is not None and chosen.index.shape[1] > 1:
                losses["null"] = null_loss(target.log_null)
        else:
            prefix = aggregate(model, question, encoded, chosen)
            copied = Copied.of_documents(model, framed, encoded, chosen)
    if config.answers:
        losses |= read_answers(
            model,
            batch,
            framed,
            prefix=prefix,
            copied=copied,
            shown=shown if config.mode in ("text", "hybrid") else None,
            distils=config.mode == "hybrid" and config.distillation_weight > 0.0,
            spans=spans,
        )
    elif config.mode == "text" and spans is not None:
        losses["text_span"] = read_texts(model, spans, batch, framed, shown=shown)
    weights = {
        "answer": 1.0,
        "student": 1.0,
        "distillation": config.distillation_weight,
        "selection": config.selection_weight,
        "late": config.late_weight,
        "evidence": config.evidence_weight,
        "span": config.span_weight,
        "text_span": config.span_weight,
        "null": config.null_weight,
    }
    losses["total"] = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    return losses


def selection_only(model: MacModel, batch: Batch, *, scale: float) -> Tensor:
    """Selection's loss alone: nothing is read, so that batches can be several times as large."""
    framed = frame(model, batch)
    question = model.encode_question_ids(framed.question_ids, framed.question_mask)
    keys = encode_documents(model, framed).selection_key
    return selection_loss(question.selection_query, keys, framed.right, scale=scale)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBank:
    """What a step may read: the batch's documents, and behind them those of earlier steps."""

    framed: Framed
    encoded: DocumentEncoding
    past: PastDocuments | None
    keys: Tensor  # (bank_size, d_key), selection keys, the batch's first
    places: Tensor  # (bank_size - documents,), into `past`

    @classmethod
    def of(
        cls,
        framed: Framed,
        encoded: DocumentEncoding,
        past: PastDocuments | None,
        *,
        paragraphs: Tensor,
    ) -> BatchBank:
        """The bank of one step; the batch's own documents join `past` for the next."""
        keys, places = encoded.selection_key, torch.empty(0, dtype=torch.int64)
        if past is not None:
            past.push(
                encoded, ids=framed.document_ids, content=framed.content, paragraphs=paragraphs
            )
            past_keys, places = past.keys(without=paragraphs)
            keys = torch.cat([keys, past_keys]) if len(places) else keys
        return cls(framed=framed, encoded=encoded, past=past, keys=keys, places=places)

    def laid_out(self, chosen: Chosen) -> tuple[Framed, DocumentEncoding, Chosen]:
        """The step's tensors with the chosen past documents behind the batch's own."""
        documents = len(self.framed.document_ids)
        used = torch.unique(chosen.index)
        used = used[used >= documents]
        if self.past is None or not len(used):
            return self.framed, self.encoded, chosen
        ids, content, slots, mask = self.past.take(self.places[used - documents])
        framed, encoded = self.framed, self.encoded
        back = torch.zeros(len(self.keys), dtype=torch.int64, device=used.device)
        back[:documents] = torch.arange(documents, device=used.device)
        back[used] = documents + torch.arange(len(used), device=used.device)
        width = max(ids.shape[1], framed.document_ids.shape[1])
        width += -width % DOCUMENT_ROUND

        def stacked(own: Tensor, other: Tensor) -> Tensor:
            blank = [0, 0] * (own.ndim - 2)
            pair = [F.pad(part, (*blank, 0, width - part.shape[1])) for part in (own, other)]
            return torch.cat([pair[0], pair[1].to(own.dtype)])

        return (
            replace(
                framed,
                document_ids=stacked(framed.document_ids, ids),
                document_mask=stacked(framed.document_mask, mask),
                content=stacked(framed.content, content),
                copy_mask=F.pad(framed.copy_mask, (0, width - framed.copy_mask.shape[-1])),
            ),
            DocumentEncoding(
                slots=stacked(encoded.slots, slots),
                slot_mask=stacked(encoded.slot_mask, mask),
                states=stacked(encoded.states, slots),
                selection_key=torch.cat([encoded.selection_key, self.keys[used]]),
            ),
            replace(chosen, index=back[chosen.index]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The documents among which a step's questions find theirs: the batch's, and hard past ones."""

    index: Tensor  # (candidates,), into the bank's keys; the batch's own first
    scores: Tensor  # (questions, candidates), nats, without gradient
    late: Tensor | None  # (questions, candidates); None: the model has no late interaction

    @classmethod
    def of(
        cls, model: MacModel, question: QuestionEncoding, bank: BatchBank, config: StepConfig
    ) -> Candidates:
        """All documents of the batch, and the past ones that some question's key is closest to."""
        documents = len(bank.encoded.slots)
        with torch.no_grad():
            cosine = question.selection_query @ bank.keys.mT  # (questions, bank_size)
            count = min(NUM_PAST_RANKED, len(bank.keys) - documents)
            past = documents + cosine[:, documents:].amax(0).topk(count).indices
            index = torch.cat([torch.arange(documents, device=past.device), past])
            scores = config.selection_scale * cosine[:, index]
        network = model.aggregation
        if not isinstance(network, RefineAggregation) or network.late is None:
            return cls(index=index, scores=scores, late=None)
        own = network.late.keys(bank.encoded.slots)
        late: Tensor = network.late(question, own, bank.encoded.slot_mask)
        if bank.past is not None and count:
            _, _, slots, mask = bank.past.take(bank.places[past - documents])
            keys = network.late.keys(slots.to(bank.encoded.slots))
            late = torch.cat([late, network.late(question, keys, mask.to(late.device))], dim=1)
        return cls(index=index, scores=scores + late.detach(), late=late)


def choose(
    candidates: Candidates, framed: Framed, config: StepConfig, *, generator: torch.Generator
) -> Chosen:
    """The right document and the hardest others, as many as there are, with their log-prior.

    The prior is flattened at random, so that reading does not lean on selection alone.
    """
    scores = candidates.scores  # (questions, candidates)
    hidden_right = scores.scatter(1, framed.right[:, None], torch.inf)
    count = min(config.num_documents, scores.shape[1])
    place = hidden_right.topk(count, dim=1).indices  # the right one is first
    trust = torch.rand(len(place), 1, generator=generator).to(scores.device)
    log_prior = torch.log_softmax(trust * scores.gather(1, place), dim=1)
    return Chosen(index=candidates.index[place], log_prior=log_prior)


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


def aggregate_slots(
    model: MacModel,
    question: QuestionEncoding,
    encoded: DocumentEncoding,
    chosen: Chosen,
    framed: Framed,
) -> TargetModulation:
    """Target modulation per question, of slots that are tokens and know where they come from."""
    index = chosen.index  # (questions, documents)
    head = len(model.layout.document_head)
    origin = slot_origin(framed.document_ids, framed.content.sum(1), index, head=head)
    bank = BankSlice(
        slots=encoded.slots[index],
        mask=encoded.slot_mask[index],
        log_prior=chosen.log_prior,
        origin=origin,
    )
    keys = model.aggregation.keys(encoded.slots, encoded.slot_mask)
    target: TargetModulation = model.aggregation(question, bank, keys)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What the questions may copy, and where the annotated answer stands in it."""

    memory: PointerMemory | None  # None: the bundle has no pointer
    mask: Tensor  # (questions, steps, tokens), bool

    @classmethod
    def of_slots(cls, model: MacModel, framed: Framed, target: TargetModulation) -> Copied:
        """The slots that aggregation kept; the right document is each question's first."""
        if target.origin is None:
            raise ValueError("slots without origin cannot be copied")
        position = target.origin[..., Origin.POSITION]
        is_right = (target.origin[..., Origin.DOCUMENT] == 0) & (position >= 0)
        is_right = is_right & ~torch.isneginf(target.log_bias)
        place = (position + len(model.layout.document_head)).clamp_min(0)  # as framed
        steps = framed.copy_mask.shape[1]
        mask = framed.copy_mask.gather(2, place[:, None].expand(-1, steps, -1))
        memory = None if model.pointer is None else slot_memory(model, target)
        return cls(memory=memory, mask=mask & is_right[:, None])

    @classmethod
    def of_documents(
        cls, model: MacModel, framed: Framed, encoded: DocumentEncoding, chosen: Chosen
    ) -> Copied:
        """Whole documents, laid end to end, the right one first."""
        tokens = framed.document_ids.shape[1]
        others = (chosen.index.shape[1] - 1) * tokens
        mask = F.pad(framed.copy_mask, (0, others))
        if model.pointer is None:
            return cls(memory=None, mask=mask)
        own = model.base_lm.input_embeddings(framed.document_ids)
        keys = model.pointer.document_keys(encoded.states, shifted(own), own)
        prior = chosen.log_prior[:, :, None].expand(*chosen.index.shape, tokens)
        prior = prior.masked_fill(~framed.content[chosen.index], -torch.inf)
        places = torch.arange(chosen.index.shape[1], device=prior.device)
        memory = PointerMemory(
            keys=keys[chosen.index].flatten(1, 2),
            token_ids=framed.document_ids[chosen.index].flatten(1, 2),
            log_prior=prior.flatten(1, 2),
            document=places.repeat_interleave(tokens).expand(len(prior), -1),
        )
        return cls(memory=memory, mask=mask)

    def rows(self, index: Tensor) -> Copied:
        return Copied(
            memory=None if self.memory is None else self.memory.rows(index), mask=self.mask[index]
        )

    def beside(self, memory: PointerMemory, mask: Tensor) -> Copied:
        """This and what else may be copied."""
        if self.memory is None:
            return self
        return Copied(memory=self.memory.beside(memory), mask=torch.cat([self.mask, mask], dim=-1))


def read_answers(
    model: MacModel,
    batch: Batch,
    framed: Framed,
    *,
    prefix: Prefix | None,
    copied: Copied | None,
    shown: Tensor | None,
    distils: bool = False,
    spans: SpanHeads | None = None,
) -> dict[str, Tensor]:
    """Losses of the annotated answers behind their prompts, those of like length together.

    Args:
        shown: `(questions,)`, document whose text stands in the prompt; None: no text.
        distils: read each question without the text too (`student`), and compare with what is
            read where the right text stands (`distillation`).
        spans: asked where in a right text the answers stand (`text_span`).
    """
    lengths = framed.question_mask.sum(1) + batch.answer_mask.sum(1).to(model.device)
    if shown is not None:
        lengths = lengths + framed.document_mask.sum(1)[shown]
    totals, weights = dict[str, Tensor](), defaultdict[str, float](float)
    for rows in by_length(lengths):
        question = _cut(framed.question_ids, framed.question_mask, rows, QUESTION_ROUND)
        answer = _cut(
            batch.answer_ids.to(model.device),
            batch.answer_mask.to(model.device),
            rows,
            ANSWER_ROUND,
        )
        own = None if prefix is None else prefix.rows(rows)
        mine = None if copied is None else copied.rows(rows)
        text = None if shown is None else _shown_text(framed, rows, shown[rows])
        read, shown_states = _read_rows(model, question, answer, prefix=own, copied=mine, text=text)
        weight = float(target_weights(read.target_mask).sum())
        found = {"answer": (_loss_of(model, read), weight)}
        if distils and shown is not None:
            student, _ = _read_rows(model, question, answer, prefix=own, copied=mine, text=None)
            found["student"] = _loss_of(model, student), weight
            taught = shown[rows] == framed.right[rows]
            compared = distillation_loss(
                model.base_lm,
                model.pointer,
                teacher=read,
                student=student,
                rows=taught,
                end_id=model.layout.end_id,
            )
            found["distillation"] = compared, float(student.target_mask[taught].sum())
        if spans is not None and shown_states is not None:
            loss, count = shown_states.span_loss(spans, answer_lengths=answer[1].sum(1))
            found["text_span"] = loss / count.clamp_min(1), float(count)
        for name, (loss, counts) in found.items():
            totals[name] = totals.get(name, torch.zeros_like(loss)) + loss * counts
            weights[name] += counts
    return {name: total / max(weights[name], 1.0) for name, total in totals.items()}


def read_texts(
    model: MacModel, spans: SpanHeads, batch: Batch, framed: Framed, *, shown: Tensor
) -> Tensor:
    """Where the answers stand in the prompts' texts, read without a modulation and not answered.

    Args:
        shown: `(questions,)`, document whose text stands in the prompt.
    """
    answer_lengths = batch.answer_mask.sum(1).to(model.device)
    lengths = framed.question_mask.sum(1) + framed.document_mask.sum(1)[shown]
    parts = list[tuple[Tensor, Tensor]]()
    for rows in by_length(lengths):
        question = _cut(framed.question_ids, framed.question_mask, rows, QUESTION_ROUND)
        text = _shown_text(framed, rows, shown[rows])
        prompt = _prompt(model, question, text)
        hidden = read_prompt(
            model.base_lm, start(model.base_lm, batch=len(rows), prefix=None), prompt
        )
        states = TextStates.of(model, prompt, hidden, text)
        parts.append(states.span_loss(spans, answer_lengths=answer_lengths[rows]))
    losses, counts = zip(*parts, strict=True)
    return torch.stack(losses).sum() / torch.stack(counts).sum().clamp_min(1)


def slot_span_loss(
    spans: SpanHeads, batch: Batch, target: TargetModulation, copied: Copied
) -> Tensor:
    """Where the answers begin and end among the right documents' slots that aggregation kept."""
    assert target.origin is not None
    is_token = (target.origin[..., Origin.DOCUMENT] == 0) & (
        target.origin[..., Origin.POSITION] >= 0
    )
    loss, count = span_loss(
        spans.slots(target.slots),
        copy_mask=copied.mask,
        is_token=is_token & ~torch.isneginf(target.log_bias),
        answer_lengths=batch.answer_mask.sum(1).to(copied.mask.device),
    )
    return loss / count.clamp_min(1)


def by_length(lengths: Tensor) -> tuple[Tensor, ...]:
    """Row numbers, those of like length together."""
    count = NUM_BUCKETS if lengths.device.type == "cpu" else NUM_GPU_BUCKETS
    return lengths.argsort().chunk(count)


def _loss_of(model: MacModel, read: AnswerStates) -> Tensor:
    return answer_loss(
        model.base_lm,
        model.pointer,
        hidden=read.hidden,
        last=read.last,
        targets=read.targets,
        target_mask=read.target_mask,
        copy_mask=read.copy_mask,
        memory=read.memory,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownText:
    """Document text in the prompts of some questions, and where their answers stand in it."""

    ids: Tensor  # (rows, tokens)
    mask: Tensor  # (rows, tokens), bool
    copy_mask: Tensor  # (rows, steps, tokens), bool; a distractor's text holds no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStates:
    """What the base LM made of the text in some prompts, and where the answers stand in it."""

    hidden: Tensor  # (rows, tokens, d_model)
    is_token: Tensor  # (rows, tokens), bool: of the text, framing left out
    copy_mask: Tensor  # (rows, steps, tokens), bool

    @classmethod
    def of(cls, model: MacModel, prompt: Prompt, hidden: Tensor, text: ShownText) -> TextStates:
        """Of `hidden` `(rows, any, d_model)`, at least as long as the prompt, the prompt's part."""
        tokens = prompt.ids.shape[1]
        return cls(
            hidden=hidden[:, :tokens],
            is_token=copyable(model, prompt),
            copy_mask=F.pad(text.copy_mask, (0, tokens - text.copy_mask.shape[-1])),
        )

    def span_loss(self, spans: SpanHeads, *, answer_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `spans.span_loss`; a row that shows a distractor's text does not count."""
        return span_loss(
            spans.text(self.hidden),
            copy_mask=self.copy_mask,
            is_token=self.is_token,
            answer_lengths=answer_lengths,
        )


def _prompt(model: MacModel, question: Ids, text: ShownText | None) -> Prompt:
    return make_prompt(
        question,
        None if text is None else (text.ids, text.mask),
        attention=model.config.prompt_attention,
        text_position=model.config.max_question_tokens,
    )


def _shown_text(framed: Framed, rows: Tensor, shown: Tensor) -> ShownText:
    ids, mask = _cut(framed.document_ids, framed.document_mask, shown, DOCUMENT_ROUND)
    is_right = (shown == framed.right[rows])[:, None, None]
    copy_mask = framed.copy_mask[rows][:, :, : ids.shape[1]] & is_right
    return ShownText(ids=ids, mask=mask, copy_mask=copy_mask)


def _read_rows(
    model: MacModel,
    question: Ids,
    answer: Ids,
    *,
    prefix: Prefix | None,
    copied: Copied | None,
    text: ShownText | None,
) -> tuple[AnswerStates, TextStates | None]:
    """Read some rows with their annotated answers behind them; and what was read of their text."""
    answer_ids, answer_mask = answer
    num_steps = answer_ids.shape[1] + 1
    prompt = _prompt(model, question, text)
    context = start(model.base_lm, batch=len(answer_ids), prefix=prefix)
    hidden = read_with_answer(model.base_lm, context, prompt, answer)
    ids, _ = join((prompt.ids, prompt.mask), answer)
    states = None if text is None else TextStates.of(model, prompt, hidden, text)
    if states is not None and model.pointer is not None:
        memory = text_memory(model, prompt, hidden)
        copied = (
            Copied(memory=memory, mask=states.copy_mask)
            if copied is None
            else copied.beside(memory, states.copy_mask)
        )
    steps = torch.arange(num_steps, device=model.device)
    where = prompt.lengths[:, None] - 1 + steps  # (rows, steps): before each target
    where = where.clamp_max(ids.shape[1] - 1)  # steps without a target, in rows that are full
    targets = F.pad(answer_ids, (0, 1)).scatter(
        1, answer_mask.sum(1, keepdim=True), model.layout.end_id
    )
    target_mask = F.pad(answer_mask, (1, 0), value=True)
    copy_mask = None
    if copied is not None:
        mask = copied.mask[:, :num_steps]
        copy_mask = torch.cat([mask, ending_mask(mask, answer_mask.sum(1))], dim=-1)
    read = AnswerStates(
        hidden=hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1])),
        last=model.base_lm.input_embeddings(ids.gather(1, where)),
        targets=targets,
        target_mask=target_mask,
        copy_mask=copy_mask,
        memory=None if copied is None else copied.memory,
    )
    return read, states


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


def _buckets(framed: Framed) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows by length: (row numbers, ids, mask), each cut to its longest."""
    return [
        (rows, *_cut(framed.document_ids, framed.document_mask, rows, DOCUMENT_ROUND))
        for rows in by_length(framed.document_mask.sum(1))
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
