"""What is minimised: answer tokens under the mixture of vocabulary and copying, what another
reading of them says, the document that is selected, and where in it the answer stands.

Both are averages in nats; gradients stay finite where a row has nothing to copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.networks.base_lm import BaseLM
from mac_core.networks.pointer import PointerHead, PointerMemory

STEPS_ROUND = 32  # few different shapes of the largest matrix product
# An answer's start has to be found; its other tokens mostly follow from the one before. Its end is
# one target among many, and without it everything after is wrong.
START_WEIGHT = 3.0
END_WEIGHT = 2.0
MIN_PROBABILITY = 1e-8  # of a token, where distributions are compared
IMPOSSIBLE = -1e9  # finite, so that the gradient of an empty log-sum-exp is 0 and not NaN


def answer_loss(
    base_lm: BaseLM,
    pointer: PointerHead | None,
    *,
    hidden: Tensor,
    last: Tensor,
    targets: Tensor,
    target_mask: Tensor,
    copy_mask: Tensor | None,
    memory: PointerMemory | None,
) -> Tensor:
    """Mean negative log-likelihood of the answer's tokens and of its end, weighted by kind.

    Args:
        hidden: `(batch, steps, d_model)`, the state before each target.
        last: `(batch, steps, d_model)`, embedding of the token before each target.
        targets: `(batch, steps)`; `target_mask`: bool, the same shape.
        copy_mask: `(batch, steps, 2 * tokens)`, bool: positions of `memory` from which copying
            the target continues the annotated answer, then those after which it ends.
    """
    steps = target_mask.flatten().nonzero().squeeze(1)  # those that count, rows laid end to end
    real = F.pad(steps, (0, -len(steps) % STEPS_ROUND))  # the first step again, without weight
    weight = target_weights(target_mask).flatten()[real]
    weight = weight * (torch.arange(len(real), device=real.device) < len(steps))
    weight = weight / weight.sum()
    scores = base_lm.logits(hidden.flatten(0, 1)[real]).float()
    written = -F.cross_entropy(scores, targets.flatten()[real], reduction="none")
    if pointer is None or memory is None or copy_mask is None:
        return -(written * weight).sum()
    log_vocabulary, log_copying = pointer.log_gate(hidden, memory)
    attention = pointer.log_attention(hidden, last, memory)
    found = attention.masked_fill(~copy_mask, IMPOSSIBLE).logsumexp(-1)  # (batch, steps)
    copied = (log_copying + found).flatten()[real]
    either = torch.logaddexp(log_vocabulary.flatten()[real] + written, copied)
    return -(either * weight).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStates:
    """The base LM before each token of some annotated answers, and what it may copy there."""

    hidden: Tensor  # (batch, steps, d_model)
    last: Tensor  # (batch, steps, d_model), embedding of the token before each target
    targets: Tensor  # (batch, steps)
    target_mask: Tensor  # (batch, steps), bool
    copy_mask: Tensor | None  # (batch, steps, 2 * tokens), bool
    memory: PointerMemory | None


def distillation_loss(
    base_lm: BaseLM,
    pointer: PointerHead | None,
    *,
    teacher: AnswerStates,
    student: AnswerStates,
    rows: Tensor,
    end_id: int,
) -> Tensor:
    """Mean divergence, in nats, of the student's next-token distribution from the teacher's.

    Over the whole mixture, so that what the teacher copies from a text the student may copy from
    wherever it finds it (Hinton et al. 2015, arXiv 1503.02531). The teacher gets no gradient.

    Args:
        teacher, student: the same answers after different prompts.
        rows: `(batch,)`, bool: answers that count; where none does, the loss is 0.
    """
    places = (student.target_mask & rows[:, None]).nonzero()  # (targets, 2): row and step
    if not len(places):
        return student.hidden.sum() * 0.0
    with torch.no_grad():
        wanted = log_mixture(base_lm, pointer, teacher, places, end_id=end_id)
    found = log_mixture(base_lm, pointer, student, places, end_id=end_id)
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def log_mixture(
    base_lm: BaseLM,
    pointer: PointerHead | None,
    states: AnswerStates,
    places: Tensor,
    *,
    end_id: int,
) -> Tensor:
    """Log of the distribution that generation draws from: `(targets, vocabulary)`, float32.

    Args:
        places: `(targets, 2)`, row and step of each.
    """
    rows, steps = places.unbind(1)
    scores = base_lm.logits(states.hidden[rows, steps]).float()
    if pointer is None or states.memory is None:
        return torch.log_softmax(scores, dim=-1)
    log_vocabulary, log_copying = pointer.log_gate(states.hidden, states.memory)
    attention = pointer.log_attention(states.hidden, states.last, states.memory)
    copying = log_copying[rows, steps, None].exp()
    copied, ended = (copying * attention[rows, steps].exp()).chunk(2, dim=-1)
    probabilities = log_vocabulary[rows, steps, None].exp() * torch.softmax(scores, dim=-1)
    probabilities = probabilities.scatter_add(1, states.memory.token_ids[rows], copied)
    at_end = F.one_hot(torch.tensor(end_id, device=rows.device), scores.shape[1])
    probabilities = probabilities + at_end * ended.sum(-1, keepdim=True)
    return probabilities.clamp_min(MIN_PROBABILITY).log()


def target_weights(target_mask: Tensor) -> Tensor:
    """What each target counts: `(batch, steps)`, float32, 0 where there is none.

    Args:
        target_mask: `(batch, steps)`, bool, the real ones first; each row's last closes its answer.
    """
    steps = torch.arange(target_mask.shape[1], device=target_mask.device)
    is_end = steps == target_mask.sum(1, keepdim=True) - 1
    weights = target_mask.float()
    weights = torch.where(steps == 0, weights * START_WEIGHT, weights)
    return torch.where(is_end & (steps > 0), weights * END_WEIGHT, weights)


def selection_loss(queries: Tensor, keys: Tensor, right: Tensor, *, scale: float) -> Tensor:
    """Contrast each question's document with all others of the batch (InfoNCE).

    Args:
        queries: `(questions, d_key)`; keys: `(documents, d_key)`; both of unit length.
        right: `(questions,)`, index of the right document.
    """
    return F.cross_entropy(scale * queries @ keys.mT, right)


def evidence_loss(log_evidence: Tensor, is_answer: Tensor) -> Tensor:
    """Share of the slots' weight that lies on the answer, in nats, over questions that have one.

    Args:
        log_evidence: `(questions, slots)`, scores; -inf: no slot.
        is_answer: `(questions, slots)`, bool: the slot is a token of the annotated answer.
    """
    has_answer = is_answer.any(1)
    scores = log_evidence.float().clamp_min(IMPOSSIBLE)
    on_answer = scores.masked_fill(~is_answer, IMPOSSIBLE).logsumexp(1)
    loss = scores.logsumexp(1) - on_answer
    return (loss * has_answer).sum() / has_answer.sum().clamp_min(1)


def null_loss(log_null: Tensor) -> Tensor:
    """How surely the documents that do not answer say so, in nats; 0 where there are none.

    Args:
        log_null: `(questions, documents)`, see `TargetModulation`; the right document is the first.
    """
    wrong = log_null[:, 1:]
    return -wrong.sum() / max(1, wrong.numel())
