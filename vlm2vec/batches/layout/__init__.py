"""Layout of a global batch: its distinct items, and the rank that encodes each."""

from vlm2vec.batches.layout.batch import BatchLayout, distribute, lay_out
from vlm2vec.batches.layout.places import ItemReference

__all__ = ["BatchLayout", "ItemReference", "distribute", "lay_out"]
