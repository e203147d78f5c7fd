"""Keyed pseudorandom permutations of any size, evaluated only at the indices that are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# In small domains few rounds are visibly not random; twelve take microseconds per thousand indices.
_ROUNDS = 12
# At least two bits per half: with one bit there are only few permutations.
_LEAST_HALF_BITS = 2
# Indices processed at a time: the work takes 200 bytes each, too many for a whole epoch.
_AT_ONCE = 1 << 16


# Words and numbers that select a permutation.
Key = tuple[str | int, ...]


def permute(indices: npt.NDArray[np.int64], size: int, *key: str | int) -> npt.NDArray[np.int64]:
    """Images of some indices under the permutation of `range(size)` that `key` selects, shape (n,)."""
    return permute_groups(indices, np.zeros(len(indices), dtype=np.int64), [size], [key])


def permute_groups(
    indices: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], sizes: Sequence[int], keys: Sequence[Key]
) -> npt.NDArray[np.int64]:
    """Images of some indices under several permutations.

    Each is a Feistel network on the smallest even number of bits that holds the range; a result outside the range is
    encrypted again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002). So step t of an epoch of a million samples costs the work of one batch and no memory. Only integer operations
    are used: a library's random stream might change between versions.

    Args:
        indices: Indices, each in the range of its permutation, shape (n,).
        groups: Number of the permutation for each index, shape (n,).
        sizes: Size of each permutation's range.
        keys: Key of each permutation.
    """
    if len(indices) > _AT_ONCE:
        parts = [slice(start, start + _AT_ONCE) for start in range(0, len(indices), _AT_ONCE)]
        return np.concatenate([permute_groups(indices[part], groups[part], sizes, keys) for part in parts])
    half_bits = [max(_LEAST_HALF_BITS, ((size - 1).bit_length() + 1) // 2) for size in sizes]
    bits = np.array(half_bits, dtype=np.uint64)[groups]
    ends = np.array(sizes, dtype=np.uint64)[groups]
    round_keys = np.stack([_round_keys(json.dumps(key)) for key in keys], axis=1)[:, groups]
    values = _encrypt(indices.astype(np.uint64), bits, round_keys)
    outside = np.flatnonzero(values >= ends)
    while outside.size:
        values[outside] = _encrypt(values[outside], bits[outside], round_keys[:, outside])
        outside = outside[values[outside] >= ends[outside]]
    return values.astype(np.int64)


def words(count: int, *key: str | int) -> npt.NDArray[np.uint64]:
    """`count` pseudorandom 64-bit words that depend only on the key, shape (count,)."""
    numbers: npt.NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
    return _mixed(_mixed(numbers) + _round_keys(json.dumps(key))[0])


@lru_cache(maxsize=256)
def _round_keys(key: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(hashlib.shake_128(key.encode()).digest(8 * _ROUNDS), dtype="<u8").astype(np.uint64)


def _encrypt(
    values: npt.NDArray[np.uint64], bits: npt.NDArray[np.uint64], round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Permutes [0, 4^bits) by a Feistel network, whose halves have `bits` bits."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    joined: npt.NDArray[np.uint64] = (left << bits) | right
    return joined


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mixes words so that every output bit depends on every input bit (splitmix64; Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
