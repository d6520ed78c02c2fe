"""Memory of Amortized Contexts: documents become modulations, questions read them (arXiv 2403.04317)."""

__version__ = "0.1.0"
