"""Phi-3-V's "HD transform": turns an image into a global view and a grid of local crops.

Uses only Pillow, numpy and torch. The result is bit-identical to Microsoft's `image_processing_phi3_v.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from vlm2vec.backbones.phi3_v.configuration import view_grid
from vlm2vec.errors import InputError
from vlm2vec.images.rgb import as_rgb

# CLIP's statistics, the values in every published preprocessor_config.json.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_WHITE = 255


@dataclass(frozen=True)
class HDLayout:
    """Preprocessing of an image of one size: resized and padded sizes in pixels, crops, tokens.

    Attributes:
        resized: (width, height) after the resize and before padding, in the image's orientation.
        padded: (width, height) after padding with white, multiples of the crop size.
        rows, columns: Grid of local crops.
        num_tokens: Image tokens in the sequence, separators included.
    """

    resized: tuple[int, int]
    padded: tuple[int, int]
    rows: int
    columns: int
    num_tokens: int

    @property
    def num_crops(self) -> int:
        """Crops that the vision tower sees: the global view and the local ones."""
        return 1 + self.rows * self.columns


def num_tokens_of(rows: int, columns: int, grid: int) -> int:
    """Image tokens for a grid of local crops: (rows columns + 1) views of grid^2 tokens, a separator at the end of
    every token row, and one separator between the local views and the global view."""
    return (rows * columns + 1) * grid * grid + 1 + (rows + 1) * grid


# Cached, because it is called several times per image, and datasets have few different sizes.
@lru_cache(maxsize=1 << 16)
def _layout(width: int, height: int, num_crops: int, crop_size: int, grid: int) -> HDLayout:
    long_side, short_side = max(width, height), min(width, height)
    if short_side < 1:
        raise InputError(f"an image of {width} x {height} pixels has no content")
    ratio = long_side / short_side
    # The largest scale (crops along the long side) whose grid has at most num_crops crops.
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    new_long = scale * crop_size
    new_short = int(new_long / ratio)
    if new_short < 1:
        raise InputError(
            f"an image of {width} x {height} pixels is too thin: resized to {new_long} pixels its short side "
            "vanishes; crop it or leave it out"
        )
    lines = math.ceil(new_short / crop_size)
    resized, padded = (new_long, new_short), (new_long, lines * crop_size)
    rows, columns = lines, scale
    if width < height:
        resized, padded, rows, columns = resized[::-1], padded[::-1], columns, rows
    return HDLayout(resized, padded, rows, columns, num_tokens_of(rows, columns, grid))


class Phi3VImageProcessor:
    """Turns images into normalised crops.

    Args:
        num_crops: Most local crops per image, without the global view.
        crop_size: Side of a crop in pixels (336 at full size).
        patch_size: Side of a patch of the vision tower in pixels.
        image_mean, image_std: Mean and standard deviation per channel, for values in 0..1.
    """

    def __init__(
        self,
        num_crops: int,
        crop_size: int = 336,
        patch_size: int = 14,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        if num_crops < 1:
            raise InputError(f"num_crops must be at least 1, not {num_crops}")
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.image_mean = image_mean
        self.image_std = image_std
        self.grid = view_grid(crop_size, patch_size)
        # Images (or slices) normalised as (x - mean) / std in float32, shaped to broadcast over (3, H, W).
        self._mean = torch.tensor(image_mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(image_std, dtype=torch.float32).view(3, 1, 1)

    def layout(self, width: int, height: int) -> HDLayout:
        """Computes the preprocessing of an image from its size alone.

        Raises:
            InputError: The image is so thin that nothing of its shorter side would be left.
        """
        return _layout(width, height, self.num_crops, self.crop_size, self.grid)

    def resize_and_pad(self, image: Image.Image) -> Image.Image:
        """Resizes an image (Pillow's antialiased bilinear filter) and pads it with white above and below.

        As in the original, an image that is higher than wide is transposed (axes swapped), processed and transposed
        back; the padding is then on the left and right.
        """
        layout = self.layout(*image.size)
        upright = image.width < image.height
        if upright:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        resized, padded = (layout.resized[::-1], layout.padded[::-1]) if upright else (layout.resized, layout.padded)
        canvas = image.resize(resized, Image.Resampling.BILINEAR)
        if padded != resized:
            top = int((padded[1] - resized[1]) / 2)
            canvas, content = Image.new("RGB", padded, (_WHITE, _WHITE, _WHITE)), canvas
            canvas.paste(content, (0, top))
        return canvas.transpose(Image.Transpose.TRANSPOSE) if upright else canvas

    def crops(self, image: Image.Image) -> torch.Tensor:
        """Crops of one image, without zero crops: the global view, then the local crops row by row.

        Args:
            image: An image in an 8-bit mode; modes other than RGB are converted (alpha is dropped without blending).

        Returns:
            The crops, float32 (1 + rows * columns, 3, crop_size, crop_size).

        Raises:
            InputError: It is not a PIL image, has more than 8 bits per channel, or is too thin.
        """
        pixels = torch.from_numpy(np.array(self.resize_and_pad(as_rgb(image)))).permute(2, 0, 1).contiguous()
        normalised = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        size = self.crop_size
        rows, columns = normalised.shape[1] // size, normalised.shape[2] // size
        # Views are written directly into the result; joining them afterwards would copy them once more.
        crops = torch.empty(1 + rows * columns, 3, size, size)
        crops[:1] = torch.nn.functional.interpolate(
            normalised[None], size=(size, size), mode="bicubic", align_corners=False
        )
        local = normalised.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4)  # (rows, columns, 3, size, size)
        crops[1:].view(rows, columns, 3, size, size).copy_(local)
        return crops

    def image_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the padded image: its entry in the model's `image_sizes`."""
        padded = self.layout(width, height).padded
        return padded[1], padded[0]
