"""The global order, dealing it to ranks, packing chunks, loading."""

from vlm2vec.batches.collate import BatchReader, ItemEncoderInputs, TrainingBatch
from vlm2vec.batches.layout import BatchLayout, lay_out
from vlm2vec.batches.loader import PlanSource, training_batches
from vlm2vec.batches.order import GlobalBatch, GlobalOrder
from vlm2vec.batches.packing import FixedCounts, TokenBudget

__all__ = [
    "BatchLayout",
    "BatchReader",
    "FixedCounts",
    "GlobalBatch",
    "GlobalOrder",
    "ItemEncoderInputs",
    "PlanSource",
    "TokenBudget",
    "TrainingBatch",
    "lay_out",
    "training_batches",
]
