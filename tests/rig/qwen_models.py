"""The Qwen families, for tests that loop over them."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path

import torch

from tests.rig.qwen_golden import model_folder
from vlm2vec.backbones.qwen_vl.items.image_processor import ImageSettings
from vlm2vec.backbones.qwen_vl.modeling import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel, QwenVLModel

MODELS: dict[str, type[QwenVLModel]] = {
    "qwen2_vl": Qwen2VLModel,
    "qwen2_5_vl": Qwen2_5_VLModel,
    "qwen3_vl": Qwen3VLModel,
}


def copied(family: str, folder: Path) -> Path:
    """A copy of a reference model to change."""
    return Path(shutil.copytree(model_folder(family), folder))


def loaded(family: str, implementation: str = "sdpa") -> QwenVLModel:
    """A reference model in float32, in evaluation mode."""
    return copy.deepcopy(_kept(family, implementation))


@cache
def _kept(family: str, implementation: str) -> QwenVLModel:
    model = MODELS[family].from_pretrained(
        model_folder(family), dtype=torch.float32, attn_implementation=implementation
    )
    ready: QwenVLModel = model.eval()
    return ready


def image_settings(family: str) -> ImageSettings:
    """How the reference's code made its images, unless a case says otherwise."""
    if family == "qwen3_vl":
        half = (0.5,) * 3
        return ImageSettings(16, 4096, 1843200, half, half, "qwen_vl_utils", over_white=True)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return ImageSettings(14, 3136, 1003520, mean, std, "vlm2vec")
