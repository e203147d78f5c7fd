"""Reads the reference data of the Qwen families in tests/data/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.rig.golden import ROOT

# For tests of values that follow from resized images.
RESIZED = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason=f"the expected pixels were resized by Pillow 13; Pillow {PIL.__version__} resizes differently "
    "(docs/install.md)",
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def model_folder(family: str) -> Path:
    """The folder of a reference model; do not write to it."""
    return ROOT / family / "model"


def read(family: str, name: str) -> Any:
    """A JSON file of a family."""
    return json.loads((ROOT / family / name).read_text(encoding="utf-8"))


def tensors(family: str, name: str) -> dict[str, torch.Tensor]:
    """A safetensors file of a family."""
    return load_file(ROOT / family / name)


def image(family: str, name: str) -> Image.Image:
    """An image of a family."""
    return Image.open(ROOT / family / name)
