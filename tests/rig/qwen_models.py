"""The Qwen families as tests go through them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tests.rig.golden import ROOT
from vlm2vec.backbones.qwen_vl.modeling import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel, QwenVLModel

MODELS: dict[str, type[QwenVLModel]] = {
    "qwen2_vl": Qwen2VLModel,
    "qwen2_5_vl": Qwen2_5_VLModel,
    "qwen3_vl": Qwen3VLModel,
}


def model_folder(family: str) -> Path:
    """The folder of a reference model; do not write to it."""
    return ROOT / family / "model"


def copied(family: str, folder: Path) -> Path:
    """A copy of a reference model to change."""
    return Path(shutil.copytree(model_folder(family), folder))


def loaded(family: str, implementation: str = "sdpa") -> QwenVLModel:
    """A reference model in float32, in evaluation mode."""
    model = MODELS[family].from_pretrained(
        model_folder(family), dtype=torch.float32, attn_implementation=implementation
    )
    ready: QwenVLModel = model.eval()
    return ready
