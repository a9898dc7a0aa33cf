"""Reproducible post-training of language models as a graph of files. Importing this package loads nothing."""

__version__ = "0.1.0"
