"""Pixels compared with the reference and with transformers' own processor on Pillow."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.rig import qwen_golden
from vlm2vec.backbones.qwen_vl.items.image_processor import ImageSettings, QwenVLImageProcessor
from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_PIXELS

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
CASES = [
    (family, case)
    for family in qwen_golden.FAMILIES
    for case in qwen_golden.read(family, "processor/cases.json")["cases"]
]
V1_CASES = qwen_golden.read("qwen2_vl", "processor/v1_image_resolution.json")["cases"]
# The fast processor of transformers fuses two operations, see the README of qwen3_vl.
FUSED_LIMIT = 1e-7


def processor(family: str, least: int, most: int, resize: str = "") -> QwenVLImageProcessor:
    if family == "qwen3_vl":
        return QwenVLImageProcessor(ImageSettings(16, least, most, *HALF, resize or "qwen_vl_utils", over_white=True))
    return QwenVLImageProcessor(ImageSettings(14, least, most, *CLIP, resize or "vlm2vec"))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{case['case']}" for family, case in CASES])
@qwen_golden.RESIZED
def test_pixels_of_the_reference(family: str, case: dict[str, Any]) -> None:
    images = processor(family, case["min_pixels"], case["max_pixels"])
    image = qwen_golden.image(family, case["image"])
    layout = images.layout(*case["size_wh"])
    assert [1, layout.rows, layout.columns] == case["grid_thw"]
    assert layout.num_tokens == case["tokens"]
    resized = images.resized(image)
    assert [resized.height, resized.width] == case["resized_hw"]
    assert sha256(np.asarray(resized)) == case["resized_rgb_sha256"]
    values = images.pixel_values(image)
    assert list(values.shape) == case["shape"]
    if family != "qwen3_vl":
        assert sha256(values.numpy()) == case["pixel_values_sha256"]
    expected = qwen_golden.tensors(family, f"processor/{case['case']}.safetensors")
    assert (values[expected["rows"]][:, expected["cols"]] - expected["sample"]).abs().max() <= FUSED_LIMIT
    if "pixel_values" in expected:
        assert (values - expected["pixel_values"]).abs().max() <= FUSED_LIMIT


@pytest.mark.parametrize(
    "case", V1_CASES, ids=[f"{case['image'][7:-4]}-{case['image_resolution']}" for case in V1_CASES]
)
@qwen_golden.RESIZED
def test_pixels_of_v1(case: dict[str, Any]) -> None:
    """Its `--image_resolution` is a resize rule. It resizes before it drops alpha, which is not imitated."""
    rule = "vlm2vec_v1" + (f"_{case['image_resolution']}" if case["image_resolution"] else "")
    images = processor("qwen2_vl", 3136, 12845056, rule)
    image = qwen_golden.image("qwen2_vl", case["image"])
    layout = images.layout(*image.size)
    assert [1, layout.rows, layout.columns] == case["grid_thw"]
    assert layout.num_tokens == case["tokens"]
    same = sha256(images.pixel_values(image).numpy()) == case["pixel_values_sha256"]
    assert same == (image.mode == "RGB" or case["image_resolution"] is None)


@pytest.mark.parametrize("patch_size", [14, 16])
def test_pixels_of_transformers(patch_size: int) -> None:
    """Random images of many sizes, grey and with a palette too: the same bits. (It blends alpha in its own way.)"""
    generator = np.random.default_rng(patch_size)
    least, most = 16 * patch_size**2, 40_000
    theirs = Qwen2VLImageProcessorPil(patch_size=patch_size, min_pixels=least, max_pixels=most)
    images = QwenVLImageProcessor(ImageSettings(patch_size, least, most, *CLIP))
    for mode, channels in (("RGB", 3), ("L", 1), ("P", 1), ("CMYK", 4)):
        for _ in range(4):
            shape = (*generator.integers(5, 600, 2), channels)
            array = generator.integers(0, 256, shape, dtype=np.uint8)
            image = Image.fromarray(array.squeeze(), "L" if mode == "P" else mode).convert(mode)
            expected = theirs(images=[image], return_tensors="pt")
            layout = images.layout(*image.size)
            assert expected["image_grid_thw"].tolist() == [[1, layout.rows, layout.columns]]
            assert torch.equal(images.pixel_values(image), expected["pixel_values"])


def test_pixels_are_rounded_once() -> None:
    images = processor("qwen2_vl", 3136, 1003520)
    image = qwen_golden.image("qwen2_vl", "images/odd.png")
    rows = torch.empty(120, images.patch_width, dtype=torch.bfloat16)
    images.write_pixel_values(images.patches(image), rows)
    assert torch.equal(rows, images.pixel_values(image).to(torch.bfloat16))


def test_a_loaders_worker_makes_the_same_bits() -> None:
    images = processor("qwen3_vl", 4096, 1843200)

    def load(names: list[str]) -> torch.Tensor:
        return images.pixel_values(qwen_golden.image("qwen3_vl", names[0]))

    loader: Any = torch.utils.data.DataLoader(["images/tall.png"], collate_fn=load, num_workers=1)  # type: ignore[arg-type]
    assert torch.equal(next(iter(loader)), load(["images/tall.png"]))


@pytest.mark.parametrize(
    ("least", "most", "message"),
    [
        (0, 3136, "min_pixels 0 must be at least 1"),
        (4000, 3136, "max_pixels 3136 is less than min_pixels 4000"),
        (1, 783, r"max_pixels 783 must be at least 784 \(one token\)"),
        (1, MAX_IMAGE_PIXELS + 1, f"at most {MAX_IMAGE_PIXELS}"),
    ],
)
def test_impossible_limits_are_refused(least: int, most: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        processor("qwen2_vl", least, most)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="resize is 'lanczos'; known rules are gme, qwen_vl_utils"):
        processor("qwen2_vl", 3136, 1003520, "lanczos")


def test_bad_images_are_refused() -> None:
    images = processor("qwen2_vl", 3136, 1003520)
    with pytest.raises(InputError, match="more than 8 bits"):
        images.patches(Image.new("I;16", (50, 50)))
    with pytest.raises(InputError, match="too thin"):
        images.patches(Image.new("RGB", (9000, 40)))
    with pytest.raises(InputError, match="is more than"):
        images.patches(Image.new("1", (60_000, 2_000)))
    closed = Image.new("RGB", (50, 50))
    closed.close()
    with pytest.raises(InputError, match="closed"):
        images.patches(closed)
