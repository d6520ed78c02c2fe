"""Data-parallel training on CPU cores: processes of one thread each, gradients averaged.

Where two threads of one process are hardly faster than one, as where two hardware threads share a
core's caches and every small product waits for both, two processes still do nearly twice the work.
Each has batches of its own; after every step all have the same weights.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch
import torch.distributed as dist
from torch import nn

WAIT = timedelta(minutes=30)  # for the slowest: reading and mining of the data come first

Arguments = ParamSpec("Arguments")


class Group:
    """One of the processes that train together, and its line to the others. One thread only."""

    def __init__(self, rendezvous: Path, *, rank: int, size: int) -> None:
        """Meet the others at a file that only they know; blocks until all are there.

        Args:
            rank: number of this process, in [0, size).
        """
        self.rank = rank
        self.size = size
        if sys.platform == "linux":  # no name of this host need be known to any server
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=size, timeout=WAIT
        )

    def average_gradients(self, module: nn.Module) -> None:
        """Replace gradients by the mean of all processes'; those of the same parameters exist."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def first_of(self, value: float) -> float:
        """The first process's value."""
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

    def leave(self) -> None:
        """Hang up."""
        dist.destroy_process_group()


@contextmanager
def companions(
    work: Callable[Concatenate[Group, Arguments], None],
    size: int,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Iterator[Group | None]:
    """Start `size` - 1 processes that do `work`; this one is the first of their group.

    They end when they are done, and are stopped if this one fails. None: there are no others.
    """
    if size == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = Path(directory, "rendezvous")
        others = [
            context.Process(
                target=_join, args=(work, rendezvous, rank, size, args, kwargs), daemon=True
            )
            for rank in range(1, size)
        ]
        for other in others:
            other.start()
        try:
            group = Group(rendezvous, rank=0, size=size)
            yield group
            for other in others:
                other.join()
            group.leave()
        finally:
            for other in others:
                other.terminate()


def _join(
    work: Callable[..., None],
    rendezvous: Path,
    rank: int,
    size: int,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    group = Group(rendezvous, rank=rank, size=size)
    work(group, *args, **kwargs)
    group.leave()
