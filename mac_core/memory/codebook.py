"""A codebook that a namespace's documents share: slots as one byte for each of their parts.

Product quantisation (Jegou et al. 2011, "Product quantization for nearest neighbor search",
section II): a slot is cut into parts, each the nearest of 256 centroids of that place. That a
memory bank can share one codebook is MBC's idea (arXiv 2601.00756). Knows no store.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_CENTROIDS = 256  # a byte
SCORED_AT_ONCE = 256  # rows, against every centroid: what stays in a cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codebook:
    """Centroids of each part of a slot; any thread."""

    centroids: Tensor  # (parts, NUM_CENTROIDS, part_width), float16

    @property
    def id(self) -> str:
        """A hash of what is in it: sha256, hex, shortened."""
        content = repr(tuple(self.centroids.shape)).encode() + self.centroids.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:32]

    @property
    def num_bytes(self) -> int:
        return self.centroids.numel() * self.centroids.element_size()

    @property
    def num_parts(self) -> int:
        return len(self.centroids)

    @property
    def width(self) -> int:
        return self.num_parts * self.centroids.shape[2]

    def encode(self, slots: Tensor) -> Tensor:
        """Nearest centroids of float `(rows, width)`: uint8 `(rows, parts)`."""
        return nearest(self._parts(slots), self.centroids.float()).T.to(torch.uint8).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """float32 `(rows, width)`; each row a function of its own codes alone."""
        parts = torch.arange(self.num_parts)
        return self.centroids[parts, codes.long()].float().flatten(1)

    def _parts(self, slots: Tensor) -> Tensor:
        return cut(slots, num_parts=self.num_parts)


def train_codebook(slots: Tensor, *, num_parts: int, rounds: int = 8, seed: int = 0) -> Codebook:
    """k-means of every part at once (Lloyd 1982), begun at rows drawn by `seed`.

    Args:
        slots: float `(rows, width)`; `num_parts` divides the width.

    Raises:
        ValueError: no row, or the parts do not divide the width.
    """
    if not len(slots) or slots.shape[1] % num_parts:
        raise ValueError(f"{num_parts} parts of slots {tuple(slots.shape)}")
    parts = cut(slots.float(), num_parts=num_parts)  # (parts, rows, part_width)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(slots), generator=generator)[:NUM_CENTROIDS]
    drawn = drawn.repeat(-(-NUM_CENTROIDS // len(drawn)))[:NUM_CENTROIDS]
    centroids = parts[:, drawn].clone()  # (parts, NUM_CENTROIDS, part_width)
    for _ in range(rounds):
        places = nearest(parts, centroids)  # (parts, rows)
        counts = torch.zeros(centroids.shape[:2]).scatter_add_(1, places, torch.ones(places.shape))
        totals = torch.zeros_like(centroids).scatter_add_(
            1, places[..., None].expand_as(parts), parts
        )
        # A centroid that nothing is near stays where it is.
        means = totals / counts.clamp_min(1.0)[..., None]
        centroids = torch.where((counts > 0)[..., None], means, centroids)
    return Codebook(centroids=centroids.half())


def nearest(parts: Tensor, centroids: Tensor) -> Tensor:
    """Which centroid each row's part is nearest to: int64 `(parts, rows)`.

    Args:
        parts: `(parts, rows, part_width)`.
        centroids: `(parts, centroids, part_width)`.
    """
    lengths = centroids.square().sum(-1)[:, None]  # (parts, 1, centroids)
    found = [
        (lengths - 2 * torch.bmm(some, centroids.mT)).argmin(-1)
        for some in torch.split(parts, SCORED_AT_ONCE, dim=1)
    ]
    return torch.cat(found, dim=1) if found else parts.new_empty(parts.shape[:2]).long()


def cut(slots: Tensor, *, num_parts: int) -> Tensor:
    """`(rows, width)` -> `(parts, rows, width / parts)`."""
    return slots.view(len(slots), num_parts, -1).transpose(0, 1).contiguous()
