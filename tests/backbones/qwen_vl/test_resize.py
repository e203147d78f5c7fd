"""Sizes of resized images compared with the reference's tables and transformers' function."""

from __future__ import annotations

import math
import random

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tests.rig import qwen_golden
from vlm2vec.backbones.qwen_vl.items.resize import RULES, Bounds, Size, largest_size, resize_steps
from vlm2vec.errors import InputError


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_sizes_of_the_reference(family: str) -> None:
    """All rows; where the code of VLM2Vec's branch main makes a square first, the row is that square's."""
    rule, factor = ("qwen_vl_utils", 32) if family == "qwen3_vl" else ("vlm2vec", 28)
    rows = qwen_golden.read(family, "sizes.json")["rows"]
    assert len(rows) > 300
    for width, height, least, most, *resized, tokens in rows:
        size, bounds = (width, height), Bounds(factor, least, most)
        thin = max(size) > 200 * min(size)
        if thin:
            with pytest.raises(InputError, match="too thin"):
                resize_steps(rule, size, bounds)
        if rule == "vlm2vec" and (thin or min(size) < factor):
            size = (max(factor, *size),) * 2
        elif thin:
            assert tokens is None
            continue
        assert [*resize_steps(rule, size, bounds)[-1]] == resized, (width, height, least, most)
        assert resized[0] * resized[1] == tokens * factor**2


def test_sizes_of_transformers() -> None:
    generator = random.Random(0)
    for _ in range(20_000):
        factor = generator.choice((28, 32))
        size = _size(generator)
        least = generator.choice((4, 64, 256)) * factor**2
        most = generator.choice((8, 256, 1280, 16384)) * factor**2 + generator.randrange(2) * 100
        least = min(least, most)
        expected = smart_resize(size[1], size[0], factor, least, most)
        assert resize_steps("transformers", size, Bounds(factor, least, most))[-1] == expected[::-1], (
            size,
            least,
            most,
        )


def test_a_small_image_is_made_a_square_first() -> None:
    assert resize_steps("vlm2vec", (20, 15), Bounds(28, 3136, 1003520)) == ((56, 56),)
    assert resize_steps("vlm2vec", (400, 27), Bounds(28, 12544, 1003520)) == ((56, 56), (112, 112))


@pytest.mark.parametrize("rule", RULES)
def test_what_has_no_size_is_refused(rule: str) -> None:
    for size in ((0, 5), (28, 5601), (5601, 28)):
        with pytest.raises(InputError, match=r"no content|too thin"):
            resize_steps(rule, size, Bounds(28, 3136, 1003520))


def test_a_side_that_vanishes_is_refused() -> None:
    with pytest.raises(InputError, match="raise max_pixels"):
        resize_steps("qwen_vl_utils", (6000, 40), Bounds(28, 3136, 10 * 784))
    with pytest.raises(InputError, match="too small: VLM2Vec v1 needs at least 28 a side"):
        resize_steps("vlm2vec_v1", (27, 100), Bounds(28, 3136, 12845056))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tokens", [1, 7, 64, 1280, 1283])
def test_no_image_takes_more_than_the_largest(rule: str, tokens: int) -> None:
    generator = random.Random(tokens)
    bounds = Bounds(28, min(tokens, 4) * 784, tokens * 784)

    def area(size: Size) -> int:
        try:
            width, height = resize_steps(rule, size, bounds)[-1]
        except InputError:
            return 0
        return width * height

    most = area(largest_size(rule, bounds))
    if rule in ("transformers", "qwen_vl_utils", "vlm2vec") and tokens != 1283:  # a prime: no rectangle
        assert most >= tokens * 784
    assert max(area(_size(generator)) for _ in range(2_000)) <= most


def _size(generator: random.Random) -> Size:
    """Small and large, thin and square."""
    long = int(2 ** generator.uniform(0, 13))
    short = max(1, math.ceil(long / generator.choice((1.0, 1.5, generator.uniform(1, 20), generator.uniform(1, 199)))))
    return (long, short) if generator.random() < 0.5 else (short, long)
