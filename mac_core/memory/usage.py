"""How much each document has carried answers lately. In memory only: approximate by intent.

A restart forgets it, and each server knows only the answers that it gave itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from mac_core.types import Source

HALF_LIFE_S = 86_400.0
MAX_EXPONENT = 500.0  # of two; before a float is at its end


class UsageCounter:
    """Attention mass by document, halved every day. Engine thread only."""

    def __init__(
        self, *, half_life_s: float = HALF_LIFE_S, now: Callable[[], float] = time.time
    ) -> None:
        self._half_life_s = half_life_s
        self._now = now
        self._origin = now()
        # Instead of halving what is old, what is new counts more: the order is the same.
        self._mass: dict[str, dict[str, float]] = {}

    def note(self, namespace: str, sources: Sequence[Source]) -> None:
        """An answer rested on these."""
        exponent = (self._now() - self._origin) / self._half_life_s
        if exponent > MAX_EXPONENT:
            self._rebase(exponent)
            exponent = 0.0
        masses = self._mass.setdefault(namespace, {})
        for source in sources:
            masses[source.id] = masses.get(source.id, 0.0) + source.score * 2.0**exponent

    def of(self, namespace: str) -> Mapping[str, float]:
        """By document, those never used left out; only the order means anything."""
        return self._mass.get(namespace, {})

    def forget(self, namespace: str, ids: Collection[str]) -> None:
        masses = self._mass.get(namespace, {})
        for name in ids:
            masses.pop(name, None)

    def _rebase(self, exponent: float) -> None:
        self._origin = self._now()
        for masses in self._mass.values():
            for name in masses:
                masses[name] *= 2.0**-exponent
