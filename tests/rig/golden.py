"""Reads the reference data in tests/data/golden."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from vlm2vec.backbones.phi3_v import Phi3VProcessor, collate_items

ROOT = Path(__file__).parents[1] / "data" / "golden"
PHI3V = ROOT / "phi3v"
# The reference's README suggests these.
EMBEDDING_LIMIT, HIDDEN_LIMIT, GRADIENT_LIMIT, LOSS_LIMIT = 5e-6, 5e-5, 1e-4, 1e-4


def read(name: str) -> Any:
    """A JSON file under phi3v/."""
    return json.loads((PHI3V / name).read_text(encoding="utf-8"))


def tensors(name: str) -> dict[str, torch.Tensor]:
    """A safetensors file under phi3v/."""
    return load_file(PHI3V / name)


def image(name: str) -> Image.Image:
    """An image under phi3v/."""
    return Image.open(PHI3V / name)


def write_model_folder(folder: Path) -> Path:
    """The reference model as a complete checkpoint folder: weights, configuration, processor, tokenizer."""
    folder.mkdir(parents=True)
    for name in ("model/model.safetensors", "model/preprocessor_config.json"):
        shutil.copy(PHI3V / name, folder)
    for file in (PHI3V / "tokenizer").iterdir():
        shutil.copy(file, folder)
    config = read("model/config.json") | {"vision_config": read("model/clip_vision_config.json")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def batch_of(
    folder: Path, texts: list[str], images: list[str | None], num_crops: int, max_len: int | None = None
) -> dict[str, Any]:
    """The model's inputs for texts and images (names under phi3v/, or None): tensors, or None without an image."""
    processor = Phi3VProcessor.from_pretrained(folder, num_crops=num_crops)
    items = [
        processor.process_item(text, [image(name)] if name else [], max_len)
        for text, name in zip(texts, images, strict=True)
    ]
    return collate_items(items, processor.pad_token_id)


def synthetic_pixels(salt: int, num_images: int, num_crops: int, sizes: list[list[int]]) -> torch.Tensor:
    """The README's formula: (images, num_crops + 1, 3, 336, 336), crops that an image does not have are zero."""
    shape = (num_images, num_crops + 1, 3, 24, 24)
    index = np.arange(np.prod(shape), dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashed = ((index + np.uint64(salt)) * np.uint64(2654435761)) % np.uint64(2**32)
    values = ((hashed // np.uint64(256)).astype(np.float64) / 2**24 * 4 - 2).astype(np.float32).reshape(shape)
    pixels = torch.from_numpy(values).repeat_interleave(14, dim=-1).repeat_interleave(14, dim=-2)
    for image, (height, width) in zip(pixels, sizes, strict=False):
        image[1 + (height // 336) * (width // 336) :] = 0
    return pixels
