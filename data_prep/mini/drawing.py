"""Draws images from those in the wheels of scikit-learn and scikit-image, split into training and held-out parts.

Handwritten digits (scikit-learn, 1,797 scans of 8 x 8 pixels) are drawn in an ink on a dark ground and combined into
pairs and mosaics; photographs are cut into crops from a grid of blocks of which every fifth is held out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
import sklearn.datasets
from PIL import Image

Pixels = npt.NDArray[np.uint8]

INKS = {
    "red": (235, 45, 45),
    "green": (50, 205, 50),
    "blue": (70, 110, 255),
    "yellow": (245, 225, 40),
    "purple": (190, 60, 225),
    "cyan": (50, 225, 225),
}
PLAIN_INK = (255, 255, 255)
GROUND = (16, 16, 16)
TILE_SIZE = 32
CROP_SIZE = 48
TEST_SHARE = 5  # one digit in five, and one block of a photograph in five, is held out
BLOCKS_PER_SIDE = 5
CROP_SHARE = 0.75  # a crop's side, as a share of its block's shorter side
TILT_DEGREES = (8.0, 15.0)
NOISE_DEVIATION = 24.0

_SKIMAGE, _SKLEARN = "skimage", "sklearn"
PHOTOS = {
    "astronaut": (_SKIMAGE, "astronaut.png"),
    "brick wall": (_SKIMAGE, "brick.png"),
    "cat": (_SKIMAGE, "chelsea.png"),
    "pagoda": (_SKLEARN, "china.jpg"),
    "cup of coffee": (_SKIMAGE, "coffee.png"),
    "coins": (_SKIMAGE, "coins.png"),
    "flower": (_SKLEARN, "flower.jpg"),
    "grass": (_SKIMAGE, "grass.png"),
    "gravel": (_SKIMAGE, "gravel.png"),
    "galaxies": (_SKIMAGE, "hubble_deep_field.jpg"),
    "stained tissue": (_SKIMAGE, "ihc.png"),
    "motorcycle": (_SKIMAGE, "motorcycle_left.png"),
    "retina": (_SKIMAGE, "retina.jpg"),
    "rocket": (_SKIMAGE, "rocket.jpg"),
}
_DARK_BORDER_SHARE = {"retina": 0.18}  # the black border around the eye has no content


@dataclass(frozen=True)
class DrawnImage:
    """A file name, and how to draw the image.

    The name encodes how the pixels are made, so images with equal names are equal: each is drawn and written once.
    """

    name: str
    draw: Callable[[], Pixels]


def _changed(pixels: Pixels, look: str, key: str) -> Pixels:
    """Gives a tile its look. All randomness depends on `key` alone, so an image is always the same."""
    if look == "inverted":
        return 255 - pixels
    if not look:
        return pixels
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if look == "tilted":
        degrees = rng.uniform(*TILT_DEGREES) * rng.choice((-1, 1))
        return np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GROUND))
    return np.clip(pixels + rng.normal(0.0, NOISE_DEVIATION, pixels.shape), 0, 255).astype(np.uint8)


class Digits:
    """The handwritten digits of one split, by label."""

    def __init__(self, split: str) -> None:
        scans, labels = _scans_and_labels()
        _, first_of_kind = np.unique(
            scans, axis=0, return_index=True
        )  # a scan that occurs twice must not be in both splits
        self._scans = scans.reshape(-1, 8, 8) / 16.0
        self._coverage: dict[int, npt.NDArray[np.float32]] = {}  # share of ink in each pixel of a tile
        kept = [i for i in sorted(first_of_kind) if (i % TEST_SHARE == 0) == (split == "test")]
        self.by_label: list[list[int]] = [[i for i in kept if labels[i] == label] for label in range(10)]

    def tile(self, index: int, ink: str | None, look: str) -> DrawnImage:
        """One digit, 32 x 32 pixels, in a named ink or (None) in white, on the dark ground.

        `look` is "" (upright and clean), "tilted", "noisy" or "inverted".
        """
        name = "_".join(part for part in (f"d{index:04d}", ink, look) if part)
        return DrawnImage(f"{name}.png", lambda: _changed(self._draw(index, ink), look, name))

    def _draw(self, index: int, ink: str | None) -> Pixels:
        if index not in self._coverage:
            strokes = Image.fromarray(self._scans[index].astype(np.float32))
            coverage = np.asarray(strokes.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC))
            self._coverage[index] = coverage.clip(0.0, 1.0)[..., None]
        colour = INKS[ink] if ink else PLAIN_INK
        contrast = np.subtract(colour, GROUND, dtype=np.float32)
        drawn: Pixels = (GROUND + contrast * self._coverage[index]).round().astype(np.uint8)
        return drawn


@cache
def _scans_and_labels() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    scans, labels = sklearn.datasets.load_digits(return_X_y=True)
    return scans, labels


def in_grid(tiles: Sequence[DrawnImage], columns: int) -> DrawnImage:
    """Puts equally large tiles side by side, row by row."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    name = "-".join(tile.name.removesuffix(".png") for tile in tiles)
    return DrawnImage(f"{name}.png", lambda: np.vstack([np.hstack([tile.draw() for tile in row]) for row in rows]))


def photo_crop(photo: str, split: str, rng: np.random.Generator, mirrored: bool = False) -> DrawnImage:
    """A square crop, 48 x 48 pixels, from a random place in one of the photograph's blocks of that split."""
    pixels = _photo(photo)
    block_height, block_width = pixels.shape[0] // BLOCKS_PER_SIDE, pixels.shape[1] // BLOCKS_PER_SIDE
    row, column = _blocks(split)[rng.integers(len(_blocks(split)))]
    side = int(CROP_SHARE * min(block_height, block_width))
    top = row * block_height + int(rng.integers(block_height - side + 1))
    left = column * block_width + int(rng.integers(block_width - side + 1))
    suffix = "_mirrored" if mirrored else ""

    def draw() -> Pixels:
        crop = Image.fromarray(pixels[top : top + side, left : left + side])
        crop = crop.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)
        return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop)

    return DrawnImage(f"{photo.replace(' ', '_')}_{left}_{top}{suffix}.jpg", draw)


def _blocks(split: str) -> list[tuple[int, int]]:
    """Grid cells of a split; the held-out ones form a knight's-move pattern: one in each row and in each column."""
    cells = [(row, column) for row in range(BLOCKS_PER_SIDE) for column in range(BLOCKS_PER_SIDE)]
    return [(row, column) for row, column in cells if ((row + 2 * column) % TEST_SHARE == 0) == (split == "test")]


@cache
def _photo(photo: str) -> Pixels:
    package, file = PHOTOS[photo]
    folder = Path(skimage.__file__).parent / "data"
    if package == _SKLEARN:
        folder = Path(sklearn.datasets.__file__).parent / "images"
    pixels = np.asarray(Image.open(folder / file).convert("RGB"))
    height, width = pixels.shape[:2]
    border = _DARK_BORDER_SHARE.get(photo, 0.0)
    top, left = int(border * height), int(border * width)
    return pixels[top : height - top, left : width - left]
