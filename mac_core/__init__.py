"""Documents become modulations, questions read them: MAC, arXiv 2403.04317."""

__version__ = "0.1.0"
