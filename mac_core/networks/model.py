"""The whole model as the engine and the evaluation see it: amortize, encode questions, answer.

Knows nothing of stores, queues or HTTP. Which documents are aggregated is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from time import perf_counter
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mac_core.config import ModelConfig, Precision
from mac_core.networks.aggregation import AggregationKeys, AggregationNetwork
from mac_core.networks.base_lm import BaseLM
from mac_core.networks.batching import bank_slice, pointer_memory
from mac_core.networks.generation import Row, Sampling, ShouldStop, generate
from mac_core.networks.hierarchy import aggregate_bank, rows_by_level
from mac_core.networks.interfaces import AmortizationNetwork, PrefixNetwork
from mac_core.networks.layout import Layout, pad_rows
from mac_core.networks.pointer import PointerHead, PointerMemory, shifted
from mac_core.networks.prompt import Ids, Prompt, make_prompt
from mac_core.networks.reading import read_prompt, start
from mac_core.networks.values import (
    DocumentEncoding,
    Origin,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)
from mac_core.tokenization import Tokenizer
from mac_core.types import Fingerprint, Modulation

Observe = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """One question with the documents chosen for it, best first.

    `texts` belong to the first `len(texts)` of `modulations` where there are any; aggregation then
    decides which of them enter the prompt, those of the documents with the most mass.

    Raises:
        ValueError: `log_prior`, or `aggregation_keys` where given, are not parallel to
            `modulations`; or no text may enter the prompt.
    """

    question: str
    modulations: tuple[Modulation, ...] = ()  # empty: no prefix
    aggregation_keys: tuple[AggregationKeys | None, ...] = ()  # cached at ingest; None: made here
    log_prior: tuple[float, ...] = ()  # log-probability of each document given the question
    texts: tuple[str, ...] = ()  # document texts for the prompt
    num_texts: int | None = None  # at most as many enter it; None: as many as fit
    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("log_prior", "aggregation_keys"):
            found, wanted = len(getattr(self, name)), len(self.modulations)
            if found != wanted and (found or name == "log_prior"):
                raise ValueError(f"{wanted} modulations, {found} {name}")
        if self.num_texts is not None and self.num_texts < 1:
            raise ValueError(f"num_texts={self.num_texts} is below 1")

    def shown(self, mass: Sequence[float]) -> list[int]:
        """Which of `texts` enter the prompt, the most telling first.

        Args:
            mass: by modulation; empty where there are none.
        """
        places = list(range(len(self.texts)))
        if self.modulations:  # a text beyond them has no mass; equal ones keep their order
            places.sort(key=lambda place: -mass[place] if place < len(mass) else 0.0)
        return places[: self.num_texts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer in the tokenizer's own spelling, and what carried it."""

    text: str
    token_ids: tuple[int, ...]
    confidence: float  # mean probability of the answer's tokens, in [0, 1]
    document_mass: tuple[float, ...]  # by modulation, sums to 1; empty without modulations
    num_prompt_tokens: int
    num_prefix_tokens: int
    num_completion_tokens: int
    probabilities: tuple[float, ...] = ()  # of its tokens, and of the one that closes it
    # By modulation, log-probability that it does not answer; empty where aggregation cannot tell.
    log_null: tuple[float, ...] = ()


Arguments = ParamSpec("Arguments")
T = TypeVar("T")


def _inferring(
    method: Callable[Concatenate[MacModel, Arguments], T],
) -> Callable[Concatenate[MacModel, Arguments], T]:
    """Run without gradients, matrix products in the model's own precision."""

    @wraps(method)
    def inferring(self: MacModel, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> T:
        is_low = self.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=is_low),
        ):
            return method(self, *args, **kwargs)

    return inferring


class MacModel(nn.Module):
    """Frozen base LM and trained networks; engine thread only."""

    def __init__(
        self,
        *,
        config: ModelConfig,
        tokenizer: Tokenizer,
        fingerprint: Fingerprint,
        base_lm: BaseLM,
        amortization: AmortizationNetwork,
        aggregation: AggregationNetwork,
        prefix: PrefixNetwork,
        pointer: PointerHead | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.precision: Precision = "float32"  # of inference; training casts by itself
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.layout = Layout.of(tokenizer)
        self.base_lm = base_lm
        self.amortization = amortization
        self.aggregation = aggregation
        self.prefix = prefix
        self.pointer = pointer

    @property
    def device(self) -> torch.device:
        return self.base_lm.input_embeddings.weight.device

    @property
    def points_at_slots(self) -> bool:
        """Whether slots are tokens, read by the pointer as aggregation leaves them."""
        return self.config.amortization.kind == "latent"

    @property
    def _max_pointed(self) -> int:
        return 0 if self.config.pointer is None else self.config.pointer.max_documents

    # Differentiable parts, shared with training.

    def encode_documents(self, ids: Tensor, mask: Tensor) -> DocumentEncoding:
        """Framed document ids `(documents, tokens)` -> modulations and keys, in one pass."""
        return self.amortization.encode_documents(ids, self.base_lm.input_embeddings(ids), mask)

    def encode_question_ids(self, ids: Tensor, mask: Tensor) -> QuestionEncoding:
        """Framed question ids `(batch, tokens)`, right-padded."""
        return self.amortization.encode_questions(ids, self.base_lm.input_embeddings(ids), mask)

    # Inference.

    @_inferring
    def amortize(self, chunks: Sequence[str]) -> list[Modulation]:
        """Turn document chunks into modulations, one forward pass for all.

        Raises:
            ValueError: a chunk longer than the amortization network reads; the caller chunks.
        """
        if not chunks:
            return []
        encodings = [self.tokenizer.encode_with_offsets(chunk) for chunk in chunks]
        rows = [self.layout.document(ids) for ids, _ in encodings]
        longest = max(map(len, rows))
        if longest > self.config.amortization.max_tokens:
            limit = self.config.amortization.max_tokens
            raise ValueError(f"a chunk has {longest} tokens with framing, the limit is {limit}")
        ids, mask = pad_rows(rows, pad_id=self.layout.pad_id, device=self.device)
        encoded = self.encode_documents(ids, mask)
        keys = None
        if self.pointer is not None and not self.points_at_slots:
            own = self.base_lm.input_embeddings(ids)
            keys = self.pointer.document_keys(encoded.states, shifted(own), own).float().cpu()
        # All documents' at once: a device is waited for at each transfer.
        slots, slot_mask = encoded.slots.float().cpu(), encoded.slot_mask.cpu()
        selection_keys = encoded.selection_key.float().cpu()
        head = len(self.layout.document_head)
        modulations = []
        for row, (token_ids, offsets) in enumerate(encodings):
            content = slice(head, head + len(token_ids))
            modulations.append(
                Modulation(
                    slots=slots[row][slot_mask[row]],
                    selection_key=selection_keys[row].clone(),
                    token_ids=torch.tensor(token_ids, dtype=torch.int64),
                    token_offsets=torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2),
                    pointer_keys=None if keys is None else keys[row, content].clone(),
                )
            )
        return modulations

    @_inferring
    def aggregation_keys(self, modulation: Modulation) -> AggregationKeys:
        """What aggregation needs of one document and no question changes; made once, at ingest."""
        slots = modulation.slots[None].to(self.device)
        mask = torch.ones(slots.shape[:2], dtype=torch.bool, device=self.device)
        return self.aggregation.keys(slots, mask).select(0)

    @_inferring
    def encode_questions(self, questions: Sequence[str]) -> QuestionEncoding:
        """What selection reads of questions, on the model's device."""
        return self.encode_question_ids(*self._question_rows(questions))

    @_inferring
    def match(self, question: QuestionEncoding, keys: Sequence[AggregationKeys]) -> Tensor:
        """Late-interaction scores of documents for one question: `(documents,)`, on the CPU.

        Raises:
            ValueError: this bundle's aggregation has no late interaction.
        """
        return self.aggregation.match(question, keys).float().cpu()

    @_inferring
    def answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        should_stop: ShouldStop | None = None,
        observe: Observe | None = None,
    ) -> list[Generated]:
        """Answer a batch; modes may differ by row, and no row reads another's documents.

        Args:
            should_stop: asked for each row between decode steps; True ends the row as it is.
            observe: told the seconds of each phase: aggregate, prefill, decode.
        """
        if not requests:
            return []
        clock = _Clock(observe, self.device)
        question = self._question_rows([request.question for request in requests])
        target = self._aggregate(requests, *question)
        prefix = None if target is None else self._prefix(requests, target)
        clock.lap("aggregate")
        masses = _by_row(None if target is None else target.document_mass, len(requests))
        nulls = _by_row(None if target is None else target.log_null, len(requests))
        shown = [request.shown(mass) for request, mass in zip(requests, masses, strict=True)]
        prompt = self._prompt(requests, question, shown)
        context = start(self.base_lm, batch=len(requests), prefix=prefix)
        hidden = read_prompt(self.base_lm, context, prompt)
        memory = self._memory(requests, target, prompt, hidden, shown)
        last = prompt.lengths - 1  # (batch,)
        every = torch.arange(len(requests), device=last.device)
        clock.lap("prefill")
        rows = generate(
            self.base_lm,
            self.pointer,
            context=context,
            memory=memory,
            hidden=hidden[every, last][:, None],
            last_ids=prompt.ids[every, last],
            samplings=[
                Sampling(
                    max_new_tokens=request.max_new_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                )
                for request in requests
            ],
            end_id=self.layout.end_id,
            should_stop=should_stop,
        )
        clock.lap("decode")
        num_prompt = prompt.lengths.tolist()
        return [
            Generated(
                text=self.tokenizer.decode(row.token_ids),
                token_ids=tuple(row.token_ids),
                confidence=sum(row.probabilities) / max(1, len(row.probabilities)),
                document_mass=_document_mass(request, row, masses[row.index], memory),
                num_prompt_tokens=num_prompt[row.index],
                num_prefix_tokens=self._num_prefix_tokens(prefix, row.index),
                num_completion_tokens=len(row.token_ids),
                probabilities=tuple(row.probabilities),
                log_null=tuple(nulls[row.index][: len(request.modulations)]),
            )
            for request, row in zip(requests, rows, strict=True)
        ]

    def _question_rows(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer.encode_batch(questions)
        rows = [self.layout.question(ids) for ids in encoded]
        return pad_rows(rows, pad_id=self.layout.pad_id, device=self.device)

    def _aggregate(
        self, requests: Sequence[AnswerRequest], ids: Tensor, mask: Tensor
    ) -> TargetModulation | None:
        """The target modulation of each row; None where no row has documents.

        Rows of unlike levels are aggregated apart, so that none has the levels of its neighbour.
        """
        sizes = [len(request.modulations) for request in requests]
        parts = rows_by_level(sizes, max_group=self.config.aggregation.max_group)
        if not parts:
            return None
        question = self.encode_question_ids(ids, mask)
        if len(parts[0]) == len(requests):
            return self._aggregate_alike(requests, question)
        rows = [torch.tensor(part, device=self.device) for part in parts]
        targets = [
            self._aggregate_alike([requests[row] for row in part], question.rows(index))
            for part, index in zip(parts, rows, strict=True)
        ]
        return TargetModulation.of_rows(targets, rows, batch=len(requests))

    def _aggregate_alike(
        self, requests: Sequence[AnswerRequest], question: QuestionEncoding
    ) -> TargetModulation:
        """The target modulation of rows that have documents and like levels."""
        bank, keys = bank_slice(
            [request.modulations for request in requests],
            [request.aggregation_keys for request in requests],
            [request.log_prior for request in requests],
            network=self.aggregation,
            device=self.device,
            layout=self.layout if self.points_at_slots else None,
        )
        return aggregate_bank(
            self.aggregation, question, bank, keys, config=self.config.aggregation
        )

    def _prefix(self, requests: Sequence[AnswerRequest], target: TargetModulation) -> Prefix:
        if not self.points_at_slots:
            alone = [len(request.modulations) == 1 for request in requests]
            # A document alone is weighed against nothing: training reads it so (`step.aggregate`).
            target = target.unweighed(torch.tensor(alone, device=self.device))
        prefix: Prefix = self.prefix(target)
        empty = [not request.modulations for request in requests]
        if any(empty):  # a row without documents is the bare LM
            prefix = prefix.masked(torch.tensor(empty, device=self.device)[:, None])
        return prefix

    def _prompt(
        self, requests: Sequence[AnswerRequest], question: Ids, shown: Sequence[Sequence[int]]
    ) -> Prompt:
        text: Ids | None = None
        if any(shown):
            rows = [
                self._prompt_text([request.texts[place] for place in places])
                for request, places in zip(requests, shown, strict=True)
            ]
            text = pad_rows(rows, pad_id=self.layout.pad_id, device=self.device)
        return make_prompt(
            question,
            text,
            attention=self.config.prompt_attention,
            text_position=self.config.max_question_tokens,
        )

    def _prompt_text(self, texts: Sequence[str]) -> list[int]:
        """Framed ids of as many whole texts as fit; the first is cut rather than left out."""
        budget, row = self.config.max_text_tokens, list[int]()
        for ids in self.tokenizer.encode_batch(texts):
            framed = self.layout.document(ids)
            if row and len(row) + len(framed) > budget:
                break
            row += framed[:budget]
        return row

    def _memory(
        self,
        requests: Sequence[AnswerRequest],
        target: TargetModulation | None,
        prompt: Prompt,
        hidden: Tensor,
        shown: Sequence[Sequence[int]],
    ) -> PointerMemory | None:
        """What the batch may copy: of the documents, and of the prompt's text."""
        if self.pointer is None:
            return None
        memory: PointerMemory | None
        if not self.points_at_slots:
            memory = pointer_memory(
                [request.modulations for request in requests],
                [request.log_prior for request in requests],
                max_documents=self._max_pointed,
                device=self.device,
            )
        else:
            memory = None if target is None else slot_memory(self, target)
        if not prompt.has_text:
            return memory
        first = torch.tensor([places[0] if places else 0 for places in shown], device=self.device)
        copied = text_memory(self, prompt, hidden, document=first)
        return copied if memory is None else memory.beside(copied)

    def _num_prefix_tokens(self, prefix: Prefix | None, row: int) -> int:
        return 0 if prefix is None else int((~torch.isneginf(prefix.log_bias[row])).sum())


def text_memory(
    model: MacModel, prompt: Prompt, hidden: Tensor, *, document: Tensor | None = None
) -> PointerMemory:
    """Pointer keys of the prompt's document text.

    Args:
        hidden: `(batch, tokens, d_model)`, at least as long as the prompt.
        document: `(batch,)`, place in its row of the document whose text stands there, of several
            the first; None: the first of all.
    """
    if model.pointer is None:
        raise ValueError("this bundle has no pointer head")
    own = model.base_lm.input_embeddings(prompt.ids)
    prior = torch.zeros(prompt.ids.shape, device=prompt.ids.device)
    return PointerMemory(
        keys=model.pointer.text_keys(hidden[:, : own.shape[1]], shifted(own), own),
        token_ids=prompt.ids,
        log_prior=prior.masked_fill(~copyable(model, prompt), -torch.inf),
        document=torch.zeros_like(prompt.ids) + (0 if document is None else document[:, None]),
    )


def copyable(model: MacModel, prompt: Prompt) -> Tensor:
    """Tokens of the prompt's document text, framing left out: bool `(batch, tokens)`."""
    marks = torch.tensor(
        [*model.layout.document_head, *model.layout.document_tail], device=prompt.ids.device
    )
    return prompt.is_text & ~torch.isin(prompt.ids, marks)


def slot_memory(model: MacModel, target: TargetModulation) -> PointerMemory:
    """Pointer keys of the tokens that aggregation kept, under their documents' mass."""
    if model.pointer is None or target.origin is None:
        raise ValueError("this bundle's pointer does not read slots")
    origin = target.origin
    document = origin[..., Origin.DOCUMENT]
    mass = target.document_mass.clamp_min(torch.finfo(torch.float32).tiny).log()
    blank = torch.isneginf(target.log_bias) | (origin[..., Origin.POSITION] < 0)
    token_ids = origin[..., Origin.TOKEN]
    embed = model.base_lm.input_embeddings
    return PointerMemory(
        keys=model.pointer.document_keys(
            target.slots, embed(origin[..., Origin.BEFORE]), embed(token_ids)
        ),
        token_ids=token_ids,
        log_prior=mass.gather(1, document).masked_fill(blank, -torch.inf),
        document=document,
    )


def _by_row(values: Tensor | None, rows: int) -> list[list[float]]:
    return [[]] * rows if values is None else values.float().tolist()


def _document_mass(
    request: AnswerRequest, row: Row, mass: Sequence[float], memory: PointerMemory | None
) -> tuple[float, ...]:
    """Attention mass by modulation: the pointer's where it copied, else the aggregation's."""
    count = len(request.modulations)
    if not count:
        return ()
    if row.copied is None or memory is None:
        return tuple(mass[:count])
    copied = torch.zeros(count, device=row.copied.device)
    place = memory.document[row.index].clamp_max(count - 1)
    copied = copied.scatter_add(0, place, row.copied.float())
    total = float(copied.sum())
    return tuple((copied / total).tolist()) if total > 0 else tuple(mass[:count])


class _Clock:
    """Tells an observer the seconds between laps, a GPU's own work included."""

    def __init__(self, observe: Observe | None, device: torch.device) -> None:
        self._observe = observe
        self._device = device
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        if self._observe is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # or the next phase is charged with it
        now = perf_counter()
        if self._observe is not None:
            self._observe(phase, now - self._last)
        self._last = now
