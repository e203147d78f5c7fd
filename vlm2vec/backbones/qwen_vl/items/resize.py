"""Resize rules: the size of an image from its width and height, as in the code of each published model.

All rules scale an image to between `min_pixels` and `max_pixels`, with both sides multiples of a token's side. They
differ for tiny and thin images and for images that are resized twice, and a model must get images as in its training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from vlm2vec.errors import InputError
from vlm2vec.item_rules import MAX_ASPECT_RATIO, check_shape

# Width and height in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Bounds:
    """Limits on the size of the result.

    Attributes:
        factor: Side of a token in pixels.
        min_pixels, max_pixels: Limits on the area of the resized image in pixels. Rounding and thin images may exceed
            them.
    """

    factor: int
    min_pixels: int
    max_pixels: int


# From a size and bounds to the sizes that an image is resized to, in order; the last one is the result.
Rule = Callable[[Size, Bounds], list[Size]]


def resize_steps(rule: str, size: Size, bounds: Bounds) -> tuple[Size, ...]:
    """The sizes that an image is resized to, in order, without steps that change nothing.

    Args:
        rule: Name of the rule, one of `RULES`.
        size: Size of the image.
        bounds: Limits on the result.

    Returns:
        At least one size; the last one's sides are multiples of the factor.

    Raises:
        InputError: The image is too thin, or too small for the rule.
    """
    if min(size) < 1:
        raise InputError(f"an image of {size[0]} x {size[1]} pixels has no content")
    check_shape(*size)
    steps = RULES[rule](size, bounds)
    if min(steps[-1]) < 1:
        raise InputError(
            f"an image of {size[0]} x {size[1]} pixels is too thin for max_pixels {bounds.max_pixels}: its short side "
            "vanishes; raise max_pixels, crop the image or leave it out"
        )
    before = [size, *steps[:-1]]
    changing = [step for previous, step in zip(before, steps, strict=True) if step != previous]
    return tuple(changing) or (size,)


@lru_cache(maxsize=64)  # because it tries thousands of sizes
def largest_size(rule: str, bounds: Bounds) -> Size:
    """The size of an image with the most tokens that any image can have.

    An image that fits exactly takes `max_pixels`. If those are only a few tokens, a thin image takes more: its short
    side is at least one token, and rounding adds a token to a side. Thousands of shapes are tried, from tiny to large.
    """
    factor = bounds.factor
    most = max(1, bounds.max_pixels // factor**2)
    candidates = [(factor * (most // rows), factor * rows) for rows in range(math.isqrt(most), 0, -1)]
    candidates += [(side, side) for side in range(1, 2 * factor)]
    for height in (1, factor // 4, factor, 8 * factor):
        candidates += [(height * eighths // 8, height) for eighths in range(8, 8 * MAX_ASPECT_RATIO + 1)]
    return max(candidates, key=lambda size: _tokens(rule, size, bounds))


def _tokens(rule: str, size: Size, bounds: Bounds) -> int:
    try:
        width, height = resize_steps(rule, size, bounds)[-1]
    except InputError:
        return 0
    return width * height // bounds.factor**2


def _scaled(size: Size, bounds: Bounds, shortest: int = 0, shortest_shrunk: int = 0) -> Size:
    """The scaling that all rules share, with Python's rounding (half to even).

    Args:
        size: Size of the image.
        bounds: Limits on the result.
        shortest: Shortest side after rounding.
        shortest_shrunk: Shortest side of an image that is shrunk.
    """
    factor, area = bounds.factor, size[0] * size[1]
    width, height = (max(shortest, round(side / factor) * factor) for side in size)
    if width * height > bounds.max_pixels:
        shrink = math.sqrt(area / bounds.max_pixels)
        width, height = (max(shortest_shrunk, math.floor(side / shrink / factor) * factor) for side in size)
    elif width * height < bounds.min_pixels:
        grow = math.sqrt(bounds.min_pixels / area)
        width, height = (math.ceil(side * grow / factor) * factor for side in size)
    return width, height


def _transformers(size: Size, bounds: Bounds) -> list[Size]:
    """Rule of transformers 5, in which no side vanishes."""
    return [_scaled(size, bounds, shortest_shrunk=bounds.factor)]


def _qwen_vl_utils(size: Size, bounds: Bounds) -> list[Size]:
    """Rule of qwen_vl_utils 0.0.14, which Qwen3-VL-Embedding uses."""
    return [_scaled(size, bounds, shortest=bounds.factor)]


def _vlm2vec(size: Size, bounds: Bounds) -> list[Size]:
    """Rule of VLM2Vec's branch main (V2, B3): an image with a side below one token first becomes 2 x 2 tokens."""
    if min(size) >= bounds.factor:
        return [_scaled(size, bounds)]
    square = (2 * bounds.factor, 2 * bounds.factor)
    return [square, _scaled(square, bounds)]


def _vlm2vec_v1(size: Size, bounds: Bounds) -> list[Size]:
    """Rule of VLM2Vec's branch v1 without `--image_resolution`."""
    if min(size) < bounds.factor:
        raise InputError(
            f"an image of {size[0]} x {size[1]} pixels is too small: VLM2Vec v1 needs at least {bounds.factor} a side; "
            "enlarge it or leave it out"
        )
    return [_scaled(size, bounds)]


def _squashed(side: int) -> Rule:
    """Rule of VLM2Vec's branch v1 with `--image_resolution`: a square of a given side, whatever the image's shape."""

    def rule(size: Size, bounds: Bounds) -> list[Size]:
        return [(side, side), *_vlm2vec_v1((side, side), bounds)]

    return rule


def _gme(size: Size, bounds: Bounds) -> list[Size]:
    """Rule of GME's code: first qwen_vl_utils with its default limits (at most 16,384 tokens), then the processor."""
    own_limits = replace(bounds, min_pixels=4 * bounds.factor**2, max_pixels=(128 * bounds.factor) ** 2)
    first = _qwen_vl_utils(size, own_limits)
    return [*first, _scaled(first[0], bounds)]


RULES: Mapping[str, Rule] = {
    "vlm2vec": _vlm2vec,
    "vlm2vec_v1": _vlm2vec_v1,
    "vlm2vec_v1_high": _squashed(1344),
    "vlm2vec_v1_mid": _squashed(672),
    "vlm2vec_v1_low": _squashed(128),
    "transformers": _transformers,
    "qwen_vl_utils": _qwen_vl_utils,
    "gme": _gme,
}
