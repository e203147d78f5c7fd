"""The weighted mean of several trainings' adapters or models, as one more of the same kind."""

from vlm2vec.average.folder import average

__all__ = ["average"]
