"""Greedy and sampled generation over the mixture of vocabulary and copying, by row in one batch.

A row leaves the batch at the step at which it ends, so late rows do not pay for early ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mac_core.networks.base_lm import BaseLM
from mac_core.networks.pointer import PointerHead, PointerMemory
from mac_core.networks.reading import Context, read_next

ShouldStop = Callable[[int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one row's tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seed: int | None = None


@dataclass(slots=True, kw_only=True)
class Row:
    """One row's tokens so far."""

    index: int  # in the batch that was started
    sampling: Sampling
    generator: torch.Generator | None
    token_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)  # the closing token's too
    copied: Tensor | None = None  # (tokens,), attention over what could be copied, summed
    stopped: bool = False  # by `should_stop`, before its end

    def choose(self, probabilities: Tensor, *, likeliest: int) -> int:
        """The next token id from `(vocabulary,)`."""
        if self.generator is None:
            return likeliest
        heated = probabilities.clamp_min(1e-30).log() / self.sampling.temperature
        weights = torch.softmax(heated, dim=-1).cpu()
        return int(torch.multinomial(weights, 1, generator=self.generator))


def generate(
    base_lm: BaseLM,
    pointer: PointerHead | None,
    *,
    context: Context,
    memory: PointerMemory | None,
    hidden: Tensor,
    last_ids: Tensor,
    samplings: Sequence[Sampling],
    end_id: int,
    should_stop: ShouldStop | None = None,
) -> list[Row]:
    """Write each row's answer until its end token, its limit, or `should_stop(row)`.

    Args:
        context: everything read so far, one row per question.
        hidden: `(batch, 1, d_model)`, state of the last token read.
        last_ids: `(batch,)`, that token.
    """
    rows = [
        Row(index=i, sampling=sampling, generator=_generator(sampling))
        for i, sampling in enumerate(samplings)
    ]
    active = list(rows)
    while active:
        probabilities, attention = _step(base_lm, pointer, memory, hidden, last_ids, end_id)
        token_ids, shares = _choose(active, probabilities)
        going = [
            _advance(
                row, token_ids[i], shares[i], None if attention is None else attention[i], end_id
            )
            for i, row in enumerate(active)
        ]
        for i, row in enumerate(active):
            if going[i] and should_stop is not None and should_stop(row.index):
                row.stopped, going[i] = True, False
        kept = [i for i, goes in enumerate(going) if goes]
        active = [active[i] for i in kept]
        if not active:
            break
        if len(kept) < len(going):
            keep = torch.tensor(kept, device=hidden.device)
            context.keep(keep)
            memory = None if memory is None else memory.rows(keep)
        last_ids = torch.tensor([row.token_ids[-1] for row in active], device=hidden.device)
        hidden = read_next(base_lm, context, last_ids)
    return rows


def _generator(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature <= 0.0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _step(
    base_lm: BaseLM,
    pointer: PointerHead | None,
    memory: PointerMemory | None,
    hidden: Tensor,
    last_ids: Tensor,
    end_id: int,
) -> tuple[Tensor, Tensor | None]:
    """Next-token probabilities `(batch, vocabulary)` and, with a pointer, its attention."""
    scores = base_lm.logits(hidden)[:, 0]
    if pointer is None or memory is None:
        return torch.softmax(scores.float(), dim=-1), None
    last = base_lm.input_embeddings(last_ids)[:, None]
    mixed = pointer.mix(scores, hidden, last, memory, end_id=end_id)
    return mixed.probabilities, mixed.attention


def _choose(rows: Sequence[Row], probabilities: Tensor) -> tuple[list[int], list[float]]:
    """Each row's next token and its probability; a GPU is waited for twice, however many rows."""
    likeliest = probabilities.argmax(dim=-1).tolist()
    token_ids = [row.choose(probabilities[i], likeliest=likeliest[i]) for i, row in enumerate(rows)]
    index = torch.tensor(token_ids, device=probabilities.device)[:, None]
    return token_ids, probabilities.gather(1, index)[:, 0].tolist()


def _advance(
    row: Row, token_id: int, probability: float, attention: Tensor | None, end_id: int
) -> bool:
    """Give the row its next token; False when that ends it."""
    row.probabilities.append(probability)
    if token_id == end_id:
        return False
    row.token_ids.append(token_id)
    if attention is not None:
        row.copied = attention if row.copied is None else row.copied + attention
    return len(row.token_ids) < row.sampling.max_new_tokens
