"""Positions of tokens and patches, computed on the host with the images, so that the model's forward never waits.

A grid is an image's (rows, columns) of patches, both even. Patches are in merge order: blocks of 2 x 2 patches row by
row, and row by row within a block; a block makes one token. Values that depend only on the grid are cached, because
datasets have few different grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

# Rows and columns of patches.
Grid = tuple[int, int]
_MERGE = 2
_KEPT_GRIDS = 256


def num_tokens(grid: Grid) -> int:
    """Number of tokens of an image."""
    return grid[0] * grid[1] // _MERGE**2


# --- The decoder's positions ---


def token_positions(
    num_ids: int, image_places: Sequence[int], grids: Sequence[Grid], positions: Literal["sequence", "grid"]
) -> torch.Tensor:
    """Positions of a row's tokens on the axes time, height and width.

    "sequence": 0, 1, 2, ... on all three axes. "grid" (M-RoPE, https://arxiv.org/abs/2409.12191): text tokens count up
    on all axes; an image that starts at p has its tokens at (p, p + y, p + x), and the next token is at p + its longer
    side.

    Args:
        num_ids: Number of tokens in the row, image tokens included.
        image_places: Index of the first token of each image in the row, ascending.
        grids: Grids of the images.
        positions: Kind of positions, "sequence" or "grid".

    Returns:
        Positions, int64 (3, num_ids).
    """
    if positions == "sequence" or not grids:
        return torch.arange(num_ids).expand(3, -1)
    pieces, place, start = [], 0, 0
    for begin, (rows, columns) in zip(image_places, grids, strict=True):
        text = begin - place
        pieces.append(np.broadcast_to(np.arange(start, start + text), (3, text)))
        start += text
        height, width = rows // _MERGE, columns // _MERGE
        time = np.zeros(height * width, dtype=np.int64)
        pieces.append(start + np.stack([time, np.repeat(np.arange(height), width), np.tile(np.arange(width), height)]))
        start += max(height, width)
        place = begin + height * width
    pieces.append(np.broadcast_to(np.arange(start, start + num_ids - place), (3, num_ids - place)))
    return torch.from_numpy(np.concatenate(pieces, axis=1))


# --- The vision tower's ---


def patch_positions(grids: Sequence[Grid]) -> torch.Tensor:
    """Row and column of each patch in its image, of all images.

    Returns:
        Rows and columns, int64 (patches, 2), in merge order.
    """
    return torch.cat([_patch_positions(grid) for grid in grids])


@lru_cache(maxsize=_KEPT_GRIDS)
def _patch_positions(grid: Grid) -> torch.Tensor:
    rows, columns = np.indices(grid, dtype=np.int64)
    return torch.from_numpy(np.stack([_merge_order(rows), _merge_order(columns)], axis=1))


def _merge_order(values: np.ndarray) -> np.ndarray:
    """Reorders values (rows, columns) to merge order (patches,)."""
    rows, columns = values.shape
    blocks = values.reshape(rows // _MERGE, _MERGE, columns // _MERGE, _MERGE)
    patches: np.ndarray = blocks.swapaxes(1, 2).reshape(-1)
    return patches


def windows(grids: Sequence[Grid], side: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Windows of Qwen2.5-VL: squares of tokens, smaller at an image's right and lower border.

    Args:
        grids: Grids of the images.
        side: Side of a window in tokens.

    Returns:
        Indices of all tokens, window by window, int64 (tokens,), and the number of patches of each window. Windows are
        sorted by size, so that attention runs on those of equal size as one batch; windows of equal size are in the
        order of the images, row by row.
    """
    orders, sizes, first = [], [], 0
    for grid in grids:
        order, each = _windows(grid, side)
        orders.append(order + first)
        sizes.append(each)
        first += num_tokens(grid)
    lengths = np.concatenate(sizes)
    by_size = np.argsort(np.repeat(lengths, lengths), kind="stable")
    index = torch.from_numpy(np.concatenate(orders)[by_size])
    return index, tuple((np.sort(lengths, kind="stable") * _MERGE**2).tolist())


@lru_cache(maxsize=_KEPT_GRIDS)
def _windows(grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of an image's tokens, window by window, and the number of tokens of each window."""
    height, width = grid[0] // _MERGE, grid[1] // _MERGE
    rows, columns = np.divmod(np.arange(height * width), width)
    window = rows // side * -(-width // side) + columns // side
    return np.argsort(window, kind="stable"), np.bincount(window)


def interpolation(grids: Sequence[Grid], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation of Qwen3-VL's learned position table to an image's grid, with aligned corners.

    Args:
        grids: Grids of the images.
        side: Side of the square table.

    Returns:
        Table entries of each patch, int64 (4, patches), and their weights, float32 (4, patches), in merge order.
    """
    made = [_interpolation(grid, side) for grid in grids]
    return torch.cat([indices for indices, _ in made], dim=1), torch.cat([weights for _, weights in made], dim=1)


@lru_cache(maxsize=_KEPT_GRIDS)
def _interpolation(grid: Grid, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    (ys, y_weights), (xs, x_weights) = (_stretched(length, side) for length in grid)
    indices = [_merge_order(y[:, None] * side + x) for y in ys for x in xs]
    weights = [_merge_order(y[:, None] * x) for y in y_weights for x in x_weights]
    return torch.from_numpy(np.stack(indices)), torch.from_numpy(np.stack(weights))


def _stretched(length: int, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each of `length` places on an axis, the table entries before and after it, and their weights.

    Computed in float32 with the same operations as transformers.
    """
    one = np.float32(1)
    places = np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    low = np.floor(places)
    behind = places - low
    before = low.astype(np.int64)
    return [before, np.minimum(before + 1, side - 1)], [one - behind, one - (one - behind)]
