"""The HD transform equals the reference bit for bit, except the global view, which torch's kernels scale."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rig import golden
from tests.rig.comparing import assert_close_relative
from vlm2vec.backbones.phi3_v import Phi3VImageProcessor
from vlm2vec.backbones.phi3_v.image_processor import CLIP_MEAN, CLIP_STD
from vlm2vec.errors import InputError

pytestmark = pytest.mark.numeric

CASES = golden.read("processor/cases.json")["cases"]


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_all_sizes() -> None:
    for width, height, num_crops, padded_width, padded_height, num_tokens in golden.read("hd_sizes.json")["rows"]:
        layout = Phi3VImageProcessor(num_crops).layout(width, height)
        assert (*layout.padded, layout.num_tokens) == (padded_width, padded_height, num_tokens), (width, height)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_pixels(case: dict[str, Any]) -> None:
    image = golden.image(case["image"])
    processor = Phi3VImageProcessor(case["num_crops"])
    rgb = processor.resize_and_pad(image.convert("RGB"))
    assert list(rgb.size) == case["hd_rgb_size_wh"]
    assert sha256(np.asarray(rgb)) == case["sha256_hd_rgb_bytes"]
    crops = processor.crops(image)
    assert len(crops) == case["real_crops_incl_global"]
    assert list(crops.shape[1:]) == case["pixel_values_shape"][2:]
    assert sha256(crops[1:].numpy()) == case["sha256_local_crops_le_f32"]
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    exact = (torch.from_numpy(np.array(rgb)).permute(2, 0, 1).double() / 255 - mean) / std
    view = torch.nn.functional.interpolate(exact[None], size=crops.shape[2:], mode="bicubic", align_corners=False)
    assert_close_relative(crops[:1], view, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_pixels_on_a_grid(case: dict[str, Any]) -> None:
    """The reference's own pixels; says where they differ when the hashes above do."""
    expected = golden.tensors(f"processor/{case['case']}.safetensors")
    crops = Phi3VImageProcessor(case["num_crops"]).crops(golden.image(case["image"]))
    lines = torch.tensor(golden.read("processor/cases.json")["grid_rows_and_cols"])
    ours = crops[:, :, lines][:, :, :, lines]
    assert torch.equal(ours[1:], expected["pixel_grid"][1:])
    assert_close_relative(ours[0], expected["pixel_grid"][0], 1e-6)


def test_small_crops_of_a_tiny_model() -> None:
    processor = Phi3VImageProcessor(num_crops=4, crop_size=32, patch_size=16)
    layout = processor.layout(64, 32)
    assert (layout.rows, layout.columns, layout.num_tokens) == (1, 2, 3 + 1 + 2)
    assert processor.crops(Image.new("RGB", (64, 32))).shape == (3, 3, 32, 32)


def test_a_tiny_image_is_enlarged() -> None:
    assert Phi3VImageProcessor(1).crops(Image.new("RGB", (1, 1), "red")).shape == (2, 3, 336, 336)


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
def test_a_vanishing_side_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too thin"):
        Phi3VImageProcessor(4).crops(Image.new("RGB", size))


def test_modes() -> None:
    processor = Phi3VImageProcessor(1)
    rgba = Image.new("RGBA", (8, 8), (200, 10, 20, 0))
    assert torch.equal(processor.crops(rgba), processor.crops(Image.new("RGB", (8, 8), (200, 10, 20))))
    grey = Image.new("L", (8, 8), 77)
    assert torch.equal(processor.crops(grey), processor.crops(Image.new("RGB", (8, 8), (77, 77, 77))))
    with pytest.raises(InputError, match="more than 8 bits"):
        processor.crops(Image.new("I;16", (8, 8), 30000))
    with pytest.raises(InputError, match="PIL image"):
        processor.crops(np.zeros((8, 8, 3), np.uint8))  # type: ignore[arg-type]


def test_no_crops_is_refused() -> None:
    with pytest.raises(InputError, match="num_crops"):
        Phi3VImageProcessor(0)
