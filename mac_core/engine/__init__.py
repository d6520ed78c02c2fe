"""The engine: one thread that owns model, bank and store. `Engine` is all that others call."""

from mac_core.engine.engine import Engine

__all__ = ["Engine"]
