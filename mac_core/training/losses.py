"""What is minimised: answer tokens under the mixture of vocabulary and copying, and selection.

Both are averages in nats; gradients stay finite where a row has nothing to copy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mac_core.networks.base_lm import BaseLM
from mac_core.networks.pointer import PointerHead, PointerMemory

STEPS_ROUND = 32  # few different shapes of the largest matrix product
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
    """Mean negative log-likelihood of the answer's tokens and of its end.

    Args:
        hidden: `(batch, steps, d_model)`, the state before each target.
        last: `(batch, steps, d_model)`, embedding of the token before each target.
        targets: `(batch, steps)`; `target_mask`: bool, the same shape.
        copy_mask: `(batch, steps, tokens)`, bool: positions of `memory` from which copying the
            target continues the annotated answer.
    """
    steps = target_mask.flatten().nonzero().squeeze(1)  # those that count, rows laid end to end
    real = F.pad(steps, (0, -len(steps) % STEPS_ROUND))  # the first step again, without weight
    weight = (torch.arange(len(real), device=real.device) < len(steps)) / len(steps)
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


def selection_loss(queries: Tensor, keys: Tensor, right: Tensor, *, scale: float) -> Tensor:
    """Contrast each question's document with all others of the batch (InfoNCE).

    Args:
        queries: `(questions, d_key)`; keys: `(documents, d_key)`; both of unit length.
        right: `(questions,)`, index of the right document.
    """
    return F.cross_entropy(scale * queries @ keys.mT, right)
