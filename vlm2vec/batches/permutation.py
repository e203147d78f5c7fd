"""Keyed permutations of any size, evaluated where they are needed and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Few rounds show in small domains; twelve cost microseconds a thousand indices.
_ROUNDS = 12
# The domain has at least 2^4 elements: with halves of one bit only few permutations exist.
_LEAST_HALF_BITS = 2
# Indices that go through together: a whole epoch at once would take 200 bytes each.
_AT_ONCE = 1 << 16


# A permutation is chosen by words and numbers; another key is another permutation.
Key = tuple[str | int, ...]


def permute(indices: npt.NDArray[np.int64], size: int, *key: str | int) -> npt.NDArray[np.int64]:
    """Where the permutation of `range(size)` that `key` chooses sends some indices, shape (n,)."""
    return permute_groups(indices, np.zeros(len(indices), dtype=np.int64), [size], [key])


def permute_groups(
    indices: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], sizes: Sequence[int], keys: Sequence[Key]
) -> npt.NDArray[np.int64]:
    """Where some permutations send some indices.

    A Feistel network on the smallest even number of bits that holds the range; a result outside the range goes through
    it again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So
    step t of an epoch of a million samples costs a batch's worth of work and no memory. Integer operations only: no
    library's random stream, which may change between versions, enters the result.

    Args:
        indices: Each in the range of its permutation, shape (n,).
        groups: Which permutation each goes through, shape (n,).
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
    """So many random 64-bit words, a function of the key only, shape (count,)."""
    numbers: npt.NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
    return _mixed(_mixed(numbers) + _round_keys(json.dumps(key))[0])


@lru_cache(maxsize=256)
def _round_keys(key: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(hashlib.shake_128(key.encode()).digest(8 * _ROUNDS), dtype="<u8").astype(np.uint64)


def _encrypt(
    values: npt.NDArray[np.uint64], bits: npt.NDArray[np.uint64], round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Permutations of [0, 4^bits)."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    joined: npt.NDArray[np.uint64] = (left << bits) | right
    return joined


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every output bit depends on every input bit (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
