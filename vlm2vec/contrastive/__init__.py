"""Loss, gather and the cached step; free of the training loop, for any encoder on a DeepSpeed engine."""

from vlm2vec.contrastive.cached_step import CachedStep, StepLayout, StepOutput
from vlm2vec.contrastive.chunk import Chunk
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.loss import ContrastiveLoss, Pairs, RowStatistics

__all__ = [
    "CachedStep",
    "Chunk",
    "ContrastiveLoss",
    "Pairs",
    "RowStatistics",
    "StepLayout",
    "StepOutput",
    "gather_rows",
]
