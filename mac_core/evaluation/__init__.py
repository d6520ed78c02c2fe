"""Measured answers: the protocols, their metrics and their reports. Nothing here is served."""
