"""To which size an image is resized, from its width and height alone: the rules of the codes that published models.

All of them scale an image to between `min_pixels` and `max_pixels`, each side a multiple of the pixels of a token. They
differ where an image is tiny, thin or resized twice, and a model must get the images that it was trained with.
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
    """What a rule needs to know.

    Attributes:
        factor: Side of a token in pixels.
        min_pixels, max_pixels: Area of the resized image. It may be passed by rounding, and by thin images.
    """

    factor: int
    min_pixels: int
    max_pixels: int


# From a size and bounds to the sizes that an image is resized to, one after another; the last one is what counts.
Rule = Callable[[Size, Bounds], list[Size]]


def resize_steps(rule: str, size: Size, bounds: Bounds) -> tuple[Size, ...]:
    """The sizes that an image is resized to one after another, without those that change nothing.

    Args:
        rule: One of `RULES`.
        size: Of the image.
        bounds: Of the result.

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


@lru_cache(maxsize=64)  # thousands of sizes are tried
def largest_size(rule: str, bounds: Bounds) -> Size:
    """The size of an image that gets as many tokens as any may.

    An image that fits exactly takes `max_pixels`. Where they are few tokens, a thin image takes more: its short side is
    a whole token, however little is left of it, and rounding adds a token to a side. So shapes in fine steps are tried,
    tiny to large.
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
    """The rule that all share, with Python's rounding (half to even).

    Args:
        size: Of the image.
        bounds: Of the result.
        shortest: Least side after rounding.
        shortest_shrunk: Least side of an image that is shrunk.
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
    """Of transformers 5: no side vanishes."""
    return [_scaled(size, bounds, shortest_shrunk=bounds.factor)]


def _qwen_vl_utils(size: Size, bounds: Bounds) -> list[Size]:
    """Of qwen_vl_utils 0.0.14, as Qwen3-VL-Embedding uses it."""
    return [_scaled(size, bounds, shortest=bounds.factor)]


def _vlm2vec(size: Size, bounds: Bounds) -> list[Size]:
    """Of VLM2Vec's branch main (V2, B3): an image with a side below a token is made a square of 2 x 2 tokens first."""
    if min(size) >= bounds.factor:
        return [_scaled(size, bounds)]
    square = (2 * bounds.factor, 2 * bounds.factor)
    return [square, _scaled(square, bounds)]


def _vlm2vec_v1(size: Size, bounds: Bounds) -> list[Size]:
    """Of VLM2Vec's branch v1 without `--image_resolution`."""
    if min(size) < bounds.factor:
        raise InputError(
            f"an image of {size[0]} x {size[1]} pixels is too small: VLM2Vec v1 needs at least {bounds.factor} a side; "
            "enlarge it or leave it out"
        )
    return [_scaled(size, bounds)]


def _squashed(side: int) -> Rule:
    """Of VLM2Vec's branch v1 with `--image_resolution`: a square of this side, whatever the image's shape."""

    def rule(size: Size, bounds: Bounds) -> list[Size]:
        return [(side, side), *_vlm2vec_v1((side, side), bounds)]

    return rule


def _gme(size: Size, bounds: Bounds) -> list[Size]:
    """Of GME's code: qwen_vl_utils with its own limits first (at most 16,384 tokens), then the processor."""
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
