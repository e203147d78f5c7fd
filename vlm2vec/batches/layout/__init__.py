"""Layout of a global batch: its distinct items, and the rank that encodes each."""

from vlm2vec.batches.layout.batch import BatchLayout, deal, lay_out
from vlm2vec.batches.layout.places import ItemReference

__all__ = ["BatchLayout", "ItemReference", "deal", "lay_out"]
