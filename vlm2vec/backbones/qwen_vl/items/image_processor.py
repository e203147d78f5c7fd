"""Qwen-VL's image preprocessing: resizes images, splits them into patches and normalises them.

Uses only Pillow, numpy and torch. The result is bit-identical to VLM2Vec's and transformers' Pillow-based processors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from vlm2vec.backbones.qwen_vl.items.resize import RULES, Bounds, Size, largest_size, resize_steps
from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_PIXELS
from vlm2vec.images.rgb import as_rgb

# 2 x 2 patches are joined into a token, and an image is repeated as two frames.
MERGE_SIZE = 2
NUM_FRAMES = 2
NUM_CHANNELS = 3
# Rows normalised at a time, few enough to stay in a core's cache.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ImageLayout:
    """Preprocessing of an image of one size.

    Attributes:
        steps: Sizes (width, height) in pixels that it is resized to, in order.
        rows, columns: Rows and columns of patches, both even.
    """

    steps: tuple[Size, ...]
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        """Number of patches, which the vision tower runs on."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Number of tokens, which the decoder runs on."""
        return self.num_patches // MERGE_SIZE**2


@dataclass(frozen=True)
class ImageSettings:
    """Settings of a model's image preprocessing.

    Attributes:
        patch_size: Side of a patch in pixels: 14 (Qwen2-VL, Qwen2.5-VL) or 16 (Qwen3-VL).
        min_pixels, max_pixels: Limits on the area of a resized image in pixels.
        image_mean, image_std: Mean and standard deviation per channel, for values in 0..1.
        resize: Resize rule, one of `vlm2vec.backbones.qwen_vl.items.resize.RULES`.
        over_white: Blend RGBA images over white instead of dropping alpha.
    """

    patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    resize: str = "transformers"
    over_white: bool = False

    @property
    def bounds(self) -> Bounds:
        """Bounds for the resize rule."""
        return Bounds(MERGE_SIZE * self.patch_size, self.min_pixels, self.max_pixels)


# Cached, because it is called several times per image, and datasets have few different sizes.
@lru_cache(maxsize=1 << 16)
def _layout(size: Size, settings: ImageSettings) -> ImageLayout:
    steps = resize_steps(settings.resize, size, settings.bounds)
    width, height = steps[-1]
    return ImageLayout(steps, height // settings.patch_size, width // settings.patch_size)


class QwenVLImageProcessor:
    """Splits images into patches.

    Args:
        settings: See `ImageSettings`.

    Raises:
        InputError: The resize rule is unknown, or no image can meet the limits.
    """

    def __init__(self, settings: ImageSettings) -> None:
        token, least, most = settings.bounds.factor**2, settings.min_pixels, settings.max_pixels
        if settings.resize not in RULES:
            raise InputError(f"resize is {settings.resize!r}; known rules are {', '.join(sorted(RULES))}")
        if least < 1:
            raise InputError(f"min_pixels {least} must be at least 1")
        if least > most:
            raise InputError(f"max_pixels {most} is less than min_pixels {least}; raise the one or lower the other")
        if not token <= most <= MAX_IMAGE_PIXELS:
            raise InputError(f"max_pixels {most} must be at least {token} (one token) and at most {MAX_IMAGE_PIXELS}")
        self.settings = settings
        self._mean = torch.tensor(settings.image_mean, dtype=torch.float32).view(NUM_CHANNELS, 1)
        self._std = torch.tensor(settings.image_std, dtype=torch.float32).view(NUM_CHANNELS, 1)

    @property
    def patch_width(self) -> int:
        """Number of values of a patch as the model reads it, with both frames."""
        return NUM_CHANNELS * NUM_FRAMES * self.settings.patch_size**2

    @property
    def largest_image_size(self) -> Size:
        """Width and height in pixels of an image with the highest possible cost."""
        return largest_size(self.settings.resize, self.settings.bounds)

    def layout(self, width: int, height: int) -> ImageLayout:
        """Computes the preprocessing of an image from its size alone.

        Raises:
            InputError: It is too thin, or too small for the resize rule.
        """
        return _layout((width, height), self.settings)

    def resized(self, image: Image.Image) -> Image.Image:
        """Converts an image to RGB and resizes it with Pillow's bicubic filter.

        Raises:
            InputError: See `as_rgb` and `layout`.
        """
        image = as_rgb(image, self.settings.over_white)
        for step in self.layout(*image.size).steps:
            if step != image.size:
                image = image.resize(step, Image.Resampling.BICUBIC)
        return image

    def patches(self, image: Image.Image) -> torch.Tensor:
        """An image's patches before normalisation, which take an eighth of the memory of `pixel_values`.

        Returns:
            Patches in merge order (the four patches of a token are neighbours), uint8 (patches, channels *
            patch_size^2).

        Raises:
            InputError: See `resized`.
        """
        pixels, side = np.asarray(self.resized(image)), self.settings.patch_size
        rows, columns = pixels.shape[0] // side // MERGE_SIZE, pixels.shape[1] // side // MERGE_SIZE
        blocks = pixels.reshape(rows, MERGE_SIZE, side, columns, MERGE_SIZE, side, NUM_CHANNELS)
        patches = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5))
        return torch.from_numpy(patches.reshape(-1, NUM_CHANNELS * side**2))

    def write_pixel_values(self, patches: torch.Tensor, rows: torch.Tensor) -> None:
        """Writes normalised patches into `rows`: (x / 255 - mean) / std in float32, repeated for both frames.

        Args:
            patches: Patches, uint8 (n, channels * patch_size^2).
            rows: Destination of any floating dtype, (n, `patch_width`); columns are ordered (channel, frame, y, x).
        """
        area = self.settings.patch_size**2
        for start in range(0, len(patches), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            values = patches[block].view(-1, NUM_CHANNELS, area).to(torch.float32)
            values.div_(255).sub_(self._mean).div_(self._std)
            rows[block].view(-1, NUM_CHANNELS, NUM_FRAMES, area).copy_(values[:, :, None])

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """Preprocesses one image.

        Returns:
            Patches as the model reads them, float32 (patches, `patch_width`), in merge order.

        Raises:
            InputError: See `resized`.
        """
        patches = self.patches(image)
        rows = torch.empty(len(patches), self.patch_width)
        self.write_pixel_values(patches, rows)
        return rows
