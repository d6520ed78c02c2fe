"""Weights of matrix products held in bfloat16, for inference under autocast.

Autocast casts every weight of every product at every call: at one question more than the products
themselves. What is cast beforehand gives the same results, bit for bit.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

DTYPE = torch.bfloat16


def lower_products(model: nn.Module) -> None:
    """Cast the weights of linear layers, in place; embeddings and norms stay as they are.

    A weight that is tied to an embedding is copied first: what is looked up is not rounded.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear | Conv1D):
            for name, weight in list(part.named_parameters(recurse=False)):
                lowered = nn.Parameter(weight.detach().to(DTYPE), requires_grad=False)
                part.register_parameter(name, lowered)
