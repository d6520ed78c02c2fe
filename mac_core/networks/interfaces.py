"""What every amortization network and every prefix network offers; their kinds are exchangeable."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mac_core.networks.values import (
    DocumentEncoding,
    Prefix,
    QuestionEncoding,
    TargetModulation,
)


class AmortizationNetwork(nn.Module, ABC):
    """Document -> modulation, and question -> what reads it. Engine thread only."""

    @abstractmethod
    def encode_documents(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> DocumentEncoding:
        """Read documents, one forward pass.

        Args:
            ids: `(documents, tokens)`, framed and right-padded.
            embeddings: `(documents, tokens, d_model)`, the base LM's, for networks that share them.
            mask: `(documents, tokens)`, bool, True where a token is real.
        """

    @abstractmethod
    def encode_questions(self, ids: Tensor, embeddings: Tensor, mask: Tensor) -> QuestionEncoding:
        """Read questions; shapes as for documents."""


class PrefixNetwork(nn.Module, ABC):
    """Target modulation -> key/value prefix of the frozen base LM. Engine thread only."""

    @abstractmethod
    def forward(self, target: TargetModulation) -> Prefix:
        """One prefix per row of the target modulation."""
