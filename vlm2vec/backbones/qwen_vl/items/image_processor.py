"""Qwen-VL's images: resized, cut into patches, normalised.

Pillow, numpy and torch only. Bit for bit what VLM2Vec's and transformers' processors on Pillow give.
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

# Patches are joined two by two into a token, and an image is its own two frames.
MERGE_SIZE = 2
NUM_FRAMES = 2
NUM_CHANNELS = 3
# Rows that are normalised at once: few enough to stay in a core's cache.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ImageLayout:
    """How an image of one size is resized and cut.

    Attributes:
        steps: (width, height) in pixels that it is resized to, one after another.
        rows, columns: Of patches; both even.
    """

    steps: tuple[Size, ...]
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        """What the vision tower sees."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """What the decoder sees."""
        return self.num_patches // MERGE_SIZE**2


@dataclass(frozen=True)
class ImageSettings:
    """What a model's images are made with.

    Attributes:
        patch_size: Side of a patch in pixels: 14 (Qwen2-VL, Qwen2.5-VL) or 16 (Qwen3-VL).
        min_pixels, max_pixels: Area of a resized image.
        image_mean, image_std: Per channel, on values in 0..1.
        resize: One of `vlm2vec.backbones.qwen_vl.items.resize.RULES`.
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
        """Of the resize rules."""
        return Bounds(MERGE_SIZE * self.patch_size, self.min_pixels, self.max_pixels)


# Asked for several times an image; data sets have few different sizes.
@lru_cache(maxsize=1 << 16)
def _layout(size: Size, settings: ImageSettings) -> ImageLayout:
    steps = resize_steps(settings.resize, size, settings.bounds)
    width, height = steps[-1]
    return ImageLayout(steps, height // settings.patch_size, width // settings.patch_size)


class QwenVLImageProcessor:
    """Cuts images into patches.

    Args:
        settings: See `ImageSettings`.

    Raises:
        InputError: An unknown resize rule, or limits that no image can keep.
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
        """Numbers of a patch as the model reads it, both frames."""
        return NUM_CHANNELS * NUM_FRAMES * self.settings.patch_size**2

    @property
    def largest_image_size(self) -> Size:
        """Width and height in pixels of an image that takes as much as any may."""
        return largest_size(self.settings.resize, self.settings.bounds)

    def layout(self, width: int, height: int) -> ImageLayout:
        """How an image of this size is cut, without looking at it.

        Raises:
            InputError: It is too thin, or too small for the resize rule.
        """
        return _layout((width, height), self.settings)

    def resized(self, image: Image.Image) -> Image.Image:
        """The image as RGB in the size that it is cut in, by Pillow's bicubic filter.

        Raises:
            InputError: See `as_rgb` and `layout`.
        """
        image = as_rgb(image, self.settings.over_white)
        for step in self.layout(*image.size).steps:
            if step != image.size:
                image = image.resize(step, Image.Resampling.BICUBIC)
        return image

    def patches(self, image: Image.Image) -> torch.Tensor:
        """An image's patches before normalisation, an eighth of the memory of `pixel_values`.

        Returns:
            uint8 (patches, channels * patch_size^2) in merge order: the four patches of a token are neighbours.

        Raises:
            InputError: See `resized`.
        """
        pixels, side = np.asarray(self.resized(image)), self.settings.patch_size
        rows, columns = pixels.shape[0] // side // MERGE_SIZE, pixels.shape[1] // side // MERGE_SIZE
        blocks = pixels.reshape(rows, MERGE_SIZE, side, columns, MERGE_SIZE, side, NUM_CHANNELS)
        patches = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5))
        return torch.from_numpy(patches.reshape(-1, NUM_CHANNELS * side**2))

    def write_pixel_values(self, patches: torch.Tensor, rows: torch.Tensor) -> None:
        """Normalises patches to where they stay: (x / 255 - mean) / std in float32, each of the two frames alike.

        Args:
            patches: uint8 (n, channels * patch_size^2).
            rows: Of any floating dtype (n, `patch_width`), written to; columns are ordered (channel, frame, y, x).
        """
        area = self.settings.patch_size**2
        for start in range(0, len(patches), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            values = patches[block].view(-1, NUM_CHANNELS, area).to(torch.float32)
            values.div_(255).sub_(self._mean).div_(self._std)
            rows[block].view(-1, NUM_CHANNELS, NUM_FRAMES, area).copy_(values[:, :, None])

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """One image as the model reads it.

        Returns:
            float32 (patches, `patch_width`), in merge order.

        Raises:
            InputError: See `resized`.
        """
        patches = self.patches(image)
        rows = torch.empty(len(patches), self.patch_width)
        self.write_pixel_values(patches, rows)
        return rows
