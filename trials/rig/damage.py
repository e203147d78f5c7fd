"""Ways to damage a file. Each function gets its content and that of a different file of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable


def truncate(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Keeps only the beginning of the content, of a random length."""
    return bytes(content[: generator.randrange(len(content))])


def flip(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Flips a few bits."""
    for _ in range(generator.choice((1, 1, 2, 8))):
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(content)


def zero(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Zeroes a tar's header block, or other 512 bytes."""
    start = generator.randrange(-(-len(content) // 512)) * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    return bytes(content)


def cut_out(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Removes a few hundred bytes at a random place."""
    start = generator.randrange(len(content))
    del content[start : start + generator.randrange(1, 600)]
    return bytes(content)


def append(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Appends up to 2,000 random bytes."""
    return bytes(content) + generator.randbytes(generator.randrange(1, 2000))


def swap(content: bytearray, generator: random.Random, other: bytes) -> bytes:
    """Replaces it by a different file of the same kind."""
    return other


OPERATORS: dict[str, Callable[[bytearray, random.Random, bytes], bytes]] = {
    "truncated": truncate,
    "bits flipped": flip,
    "block zeroed": zero,
    "piece cut out": cut_out,
    "junk appended": append,
    "swapped": swap,
}
