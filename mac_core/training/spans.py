"""Where an answer begins and ends, asked of each token's state directly.

Two linear scores over the tokens of the right document, as BERT reads SQuAD (arXiv 1810.04805,
section 4.2). Only training has them: they tell the layers that read what to look for, long before
an answer that is written out token by token does, and no bundle holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mac_core.networks.model import MacModel
from mac_core.networks.pointer import ending_mask
from mac_core.training.losses import IMPOSSIBLE


class SpanHeads(nn.Module):
    """Scores of a start and an end: of refined slots, and of text in the base LM's prompt."""

    def __init__(self, *, d_modulation: int, d_model: int) -> None:
        super().__init__()
        self.slots = _head(d_modulation)
        self.text = _head(d_model)

    @classmethod
    def of(cls, model: MacModel) -> SpanHeads:
        """Untrained heads for a model's states, on its device."""
        heads = cls(
            d_modulation=model.config.amortization.d_modulation, d_model=model.base_lm.d_model
        )
        return heads.to(model.device)


class TrainedModel(nn.Module):
    """What a run trains: the model, and the heads that stay behind when it is exported."""

    def __init__(self, model: MacModel) -> None:
        super().__init__()
        self.model = model
        self.spans = SpanHeads.of(model)


def span_loss(
    scores: Tensor, *, copy_mask: Tensor, is_token: Tensor, answer_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-probability of where the answer begins, plus that of where it ends, in nats.

    Args:
        scores: `(questions, tokens, 2)`, of a start and of an end.
        copy_mask: `(questions, steps, tokens)`, bool: answer token j stands here.
        is_token: `(questions, tokens)`, bool: where an answer may stand.
        answer_lengths: `(questions,)`, in tokens.

    Returns:
        Their sum over the questions whose answer stands there, and how many these are.
    """
    starts = copy_mask[:, 0] & is_token
    ends = ending_mask(copy_mask, answer_lengths).any(1) & is_token
    has_answer = starts.any(1) & ends.any(1)
    log_shares = scores.float().masked_fill(~is_token[..., None], IMPOSSIBLE).log_softmax(1)
    found = [
        log_shares[..., kind].masked_fill(~where, IMPOSSIBLE).logsumexp(1)
        for kind, where in enumerate((starts, ends))
    ]
    loss = -torch.stack(found).sum(0)
    return torch.where(has_answer, loss, 0.0).sum(), has_answer.sum()


def _head(width: int) -> nn.Linear:
    head = nn.Linear(width, 2)
    nn.init.zeros_(head.weight)  # every token alike: no random number is drawn for it
    nn.init.zeros_(head.bias)
    return head
