"""Batches: the global order, distributing items to ranks, planning and loading steps."""

from vlm2vec.batches.layout import BatchLayout, lay_out
from vlm2vec.batches.loader import PlanSource, TrainingBatch, TrainingBatches
from vlm2vec.batches.mixture import Mixture
from vlm2vec.batches.order import GlobalOrder
from vlm2vec.batches.reader import BatchReader
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.batches.step_plan import ChunkSizes, StepHeader

__all__ = [
    "BatchLayout",
    "BatchReader",
    "ChunkSizes",
    "GlobalBatch",
    "GlobalOrder",
    "Mixture",
    "PlanSource",
    "StepHeader",
    "TrainingBatch",
    "TrainingBatches",
    "lay_out",
]
