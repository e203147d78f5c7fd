"""Processors of the three families: defaults of their published files, and inputs of their vision towers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from vlm2vec.backbones.qwen_vl.items.image_processor import MERGE_SIZE
from vlm2vec.backbones.qwen_vl.items.positions import Grid, interpolation, windows
from vlm2vec.backbones.qwen_vl.items.preprocessor_file import PublishedFile
from vlm2vec.backbones.qwen_vl.items.processor import QwenVLProcessor

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)


class Qwen2VLProcessor(QwenVLProcessor):
    """Processor of Qwen2-VL."""

    model_type = "qwen2_vl"
    published: ClassVar[PublishedFile] = PublishedFile(
        patch_size=14,
        image_mean=_CLIP_MEAN,
        image_std=_CLIP_STD,
        min_pixels=4 * 28**2,
        max_pixels=16384 * 28**2,
        processor_class="Qwen2VLProcessor",
        image_processor_type="Qwen2VLImageProcessor",
    )

    def _tower_arguments(self, grids: Sequence[Grid]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        return {}, {}


class Qwen2_5_VLProcessor(QwenVLProcessor):  # noqa: N801  (the model's name)
    """Processor of Qwen2.5-VL, whose tower attends within windows."""

    model_type = "qwen2_5_vl"
    vision_field = "window_size"
    published: ClassVar[PublishedFile] = replace(
        Qwen2VLProcessor.published, processor_class="Qwen2_5_VLProcessor", vision_field=vision_field, table=112
    )

    def _tower_arguments(self, grids: Sequence[Grid]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        index, lengths = windows(grids, self.table // self.patch_size // MERGE_SIZE)
        return {"window_index": index}, {"window_lengths": lengths}


class Qwen3VLProcessor(QwenVLProcessor):
    """Processor of Qwen3-VL, whose tower has a table of learned positions."""

    model_type = "qwen3_vl"
    vision_field = "num_position_embeddings"
    published: ClassVar[PublishedFile] = PublishedFile(
        patch_size=16,
        image_mean=_HALF,
        image_std=_HALF,
        min_pixels=64 * 32**2,
        max_pixels=16384 * 32**2,
        processor_class="Qwen3VLProcessor",
        image_processor_type="Qwen2VLImageProcessorFast",
        limits_as_edges=True,
        vision_field=vision_field,
        table=48**2,
    )

    def _tower_arguments(self, grids: Sequence[Grid]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        indices, weights = interpolation(grids, math.isqrt(self.table))
        return {"interpolation_indices": indices, "interpolation_weights": weights}, {}
