"""Keyed permutations of any size, evaluated where they are needed and nowhere else."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Few rounds show in small domains; twelve cost microseconds a thousand indices.
_ROUNDS = 12
# The domain has at least 2^4 elements: with halves of one bit only few permutations exist.
_LEAST_HALF_BITS = 2


def permute(indices: NDArray[np.int64], size: int, *key: str | int) -> NDArray[np.int64]:
    """Where a permutation of `range(size)`, chosen by `key`, sends some indices.

    A Feistel network on the smallest even number of bits that holds `size`; a result outside the range goes through it
    again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So
    step t of an epoch of a million samples costs a batch's worth of work and no memory. Integer operations only: no
    library's random stream, which may change between versions, enters the result.

    Args:
        indices: Each in [0, size), shape (n,).
        size: Of the permuted range.
        key: Any words and numbers; another key is another permutation.
    """
    half_bits = max(_LEAST_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(json.dumps(key))
    values = _encrypt(indices.astype(np.uint64), half_bits, round_keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _encrypt(values[outside], half_bits, round_keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """So many random 64-bit words, a function of the key only, shape (count,)."""
    numbers: NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
    return _mixed(_mixed(numbers) + _round_keys(json.dumps(key))[0])


@lru_cache(maxsize=256)
def _round_keys(key: str) -> tuple[np.uint64, ...]:
    words = np.frombuffer(hashlib.shake_128(key.encode()).digest(8 * _ROUNDS), dtype="<u8")
    return tuple(np.uint64(word) for word in words)


def _encrypt(values: NDArray[np.uint64], half_bits: int, round_keys: tuple[np.uint64, ...]) -> NDArray[np.uint64]:
    """A permutation of [0, 4^half_bits)."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    joined: NDArray[np.uint64] = (left << bits) | right
    return joined


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every output bit depends on every input bit (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
