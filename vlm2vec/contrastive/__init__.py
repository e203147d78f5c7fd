"""Contrastive loss, gather and cached step for any encoder on a DeepSpeed engine; independent of the training loop."""

from vlm2vec.contrastive.cached_step import (
    CachedStep,
    ChunkError,
    DamagedItemsError,
    NonFiniteLossError,
    StepLayout,
    StepOutput,
    has_dropout,
)
from vlm2vec.contrastive.chunk import Chunk, Phase, StepChunks
from vlm2vec.contrastive.distillation import Distillation
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.loss import ContrastiveLoss, RowStatistics
from vlm2vec.contrastive.negatives import Negatives
from vlm2vec.contrastive.pairs import Pairs
from vlm2vec.contrastive.slots import StepStoppedError
from vlm2vec.contrastive.temperature import LearnedTemperature

__all__ = [
    "CachedStep",
    "Chunk",
    "ChunkError",
    "ContrastiveLoss",
    "DamagedItemsError",
    "Distillation",
    "LearnedTemperature",
    "Negatives",
    "NonFiniteLossError",
    "Pairs",
    "Phase",
    "RowStatistics",
    "StepChunks",
    "StepLayout",
    "StepOutput",
    "StepStoppedError",
    "gather_rows",
    "has_dropout",
]
