"""Weighted average of several adapters, or of several models, written as one folder of the same kind."""

from vlm2vec.average.folder import average

__all__ = ["average"]
