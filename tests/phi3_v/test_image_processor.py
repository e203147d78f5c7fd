"""The HD transform against the reference, bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests import golden
from vlm2vec.errors import InputError
from vlm2vec.phi3_v import Phi3VImageProcessor

CASES = golden.read("processor/cases.json")["cases"]


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_all_sizes() -> None:
    for width, height, num_crops, padded_width, padded_height, num_tokens in golden.read("hd_sizes.json")["rows"]:
        layout = Phi3VImageProcessor(num_crops).layout(width, height)
        assert (*layout.padded, layout.num_tokens) == (padded_width, padded_height, num_tokens), (width, height)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_pixels(case: dict) -> None:
    picture = golden.image(case["image"])
    processor = Phi3VImageProcessor(case["num_crops"])
    rgb = processor.resize_and_pad(picture.convert("RGB"))
    assert list(rgb.size) == case["hd_rgb_size_wh"]
    assert sha256(np.asarray(rgb)) == case["sha256_hd_rgb_bytes"]
    crops = processor.crops(picture)
    assert len(crops) == case["real_crops_incl_global"]
    assert sha256(crops[1:].numpy()) == case["sha256_local_crops_le_f32"]
    padded = torch.zeros(case["pixel_values_shape"][1:])
    padded[: len(crops)] = crops
    assert sha256(padded.numpy()) == case["sha256_pixel_values_le_f32"]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_pixels_on_a_grid(case: dict) -> None:
    """Says where the pixels differ when the hashes above do."""
    expected = golden.tensors(f"processor/{case['case']}.safetensors")
    crops = Phi3VImageProcessor(case["num_crops"]).crops(golden.image(case["image"]))
    lines = torch.tensor(golden.read("processor/cases.json")["grid_rows_and_cols"])
    torch.testing.assert_close(crops[:, :, lines][:, :, :, lines], expected["pixel_grid"], rtol=0, atol=0)


def test_small_crops_of_a_tiny_model() -> None:
    processor = Phi3VImageProcessor(num_crops=4, crop_size=32, patch_size=16)
    layout = processor.layout(64, 32)
    assert (layout.rows, layout.columns, layout.num_tokens) == (1, 2, 3 + 1 + 2)
    assert processor.crops(Image.new("RGB", (64, 32))).shape == (3, 3, 32, 32)


def test_a_tiny_picture_is_enlarged() -> None:
    assert Phi3VImageProcessor(1).crops(Image.new("RGB", (1, 1), "red")).shape == (2, 3, 336, 336)


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
def test_a_vanishing_side_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too thin"):
        Phi3VImageProcessor(4).crops(Image.new("RGB", size))


def test_modes() -> None:
    processor = Phi3VImageProcessor(1)
    rgba = Image.new("RGBA", (8, 8), (200, 10, 20, 0))
    torch.testing.assert_close(processor.crops(rgba), processor.crops(Image.new("RGB", (8, 8), (200, 10, 20))))
    grey = Image.new("L", (8, 8), 77)
    torch.testing.assert_close(processor.crops(grey), processor.crops(Image.new("RGB", (8, 8), (77, 77, 77))))
    with pytest.raises(InputError, match="more than 8 bits"):
        processor.crops(Image.new("I;16", (8, 8), 30000))
    with pytest.raises(InputError, match="PIL image"):
        processor.crops(np.zeros((8, 8, 3), np.uint8))  # type: ignore[arg-type]


def test_no_crops_is_refused() -> None:
    with pytest.raises(InputError, match="num_crops"):
        Phi3VImageProcessor(0)
