"""Arguments of a Qwen model, made by transformers' own functions instead of the project's processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vlm2vec.backbones.qwen_vl.tower import PATCHES_PER_TOKEN

Call = dict[str, Any]  # tensors and host values
# A row of texts (token ids) and images (rows and columns of patches).
Row = Sequence[int | tuple[int, int]]
# Two images are equally large, and windows are ragged.
ROWS: list[Row] = [
    [5, (6, 10), 7, 8, (4, 4), 9],
    [11, 12, 13],
    [(16, 18), 21, 22],
    [31, (4, 4), (2, 2), 32, 33, 34],
]


def right_padded(ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> Call:
    """Rows padded on either side, (n, L), and positions (3, n, L), as the model takes them."""
    rows, places = torch.zeros_like(ids), torch.zeros_like(position_ids)
    lengths = mask.sum(1)
    for row, real in enumerate(mask.bool()):
        rows[row, : lengths[row]] = ids[row, real]
        places[:, row, : lengths[row]] = position_ids[:, row, real]
    new_mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return {"input_ids": rows, "attention_mask": new_mask, "position_ids": places}


def vision_arguments(config: Any, images: Sequence[torch.Tensor], grids: torch.Tensor) -> Call:
    """What the tower takes of images.

    Args:
        config: The model's.
        images: Patches of each, (patches, width).
        grids: int64 (images, 3): frames, rows and columns of patches.
    """
    vision = config.vision_config
    call: Call = {
        "pixel_values": torch.cat(list(images)),
        "patch_positions": get_vision_position_ids(grids, 2),
        "image_lengths": tuple(len(each) for each in images),
    }
    if config.model_type == "qwen2_5_vl":
        index, sums = get_vision_window_index(grids, 2, vision.window_size, vision.patch_size)
        lengths = sums.diff().tolist()
        windows = torch.split(index, [length // PATCHES_PER_TOKEN for length in lengths])
        order = sorted(range(len(lengths)), key=lambda window: lengths[window])
        call["window_index"] = torch.cat([windows[window] for window in order])
        call["window_lengths"] = tuple(lengths[window] for window in order)
    if config.model_type == "qwen3_vl":
        side = int(vision.num_position_embeddings**0.5)
        indices, weights = get_vision_interpolation_indices_and_weights(grids, side, "bilinear", True, 2)
        call |= {"interpolation_indices": indices.T, "interpolation_weights": weights.T}
    return call


def call_of(
    config: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    position_ids: torch.Tensor,
    images: Sequence[torch.Tensor] = (),
    grids: torch.Tensor | None = None,
) -> Call:
    """One call of the model: rows with image tokens, images in the order of their tokens.

    The images are sorted by their number of patches, so that equal ones are neighbours.
    """
    call = right_padded(ids, mask, position_ids)
    if grids is None or not len(images):
        return call
    of_images = (call["input_ids"] == config.image_token_id) & (call["attention_mask"] == 1)
    lengths = [len(image) // PATCHES_PER_TOKEN for image in images]
    assert int(of_images.sum()) == sum(lengths)
    places = torch.split(of_images.flatten().nonzero().flatten(), lengths)
    order = sorted(range(len(images)), key=lambda image: lengths[image])
    call["image_rows"] = torch.cat([places[image] for image in order])
    return call | vision_arguments(config, [images[image] for image in order], grids[order])


def dummy_arguments(config: Any) -> Call:
    """The smallest image, that belongs to no row."""
    vision = config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.zeros(PATCHES_PER_TOKEN, width)
    rows = torch.zeros(0, dtype=torch.int64)
    call = vision_arguments(config, [pixels], torch.tensor([[1, 2, 2]]))
    return call | {"image_rows": rows, "dummy_image": True}


def synthetic_images(config: Any, grids: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Patches of random images."""
    vision, generator = config.vision_config, torch.Generator().manual_seed(seed)
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return [torch.randn(int(grid.prod()), width, generator=generator) for grid in grids]


def made_call(config: Any, rows: Sequence[Row], seed: int = 0) -> Call:
    """One call for such rows, positions by grid. Images of one size and seed have the same random pixels."""
    flat = [[id for part in row for id in _ids(config, part)] for row in rows]
    width = max(len(row) for row in flat)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in flat])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in flat])
    grids = torch.tensor([[1, *part] for row in rows for part in row if isinstance(part, tuple)]).view(-1, 3)
    images = [synthetic_images(config, grid[None], seed)[0] for grid in grids]
    return call_of(config, ids, mask, _grid_positions(rows, width), images, grids)


def _ids(config: Any, part: int | tuple[int, int]) -> list[int]:
    return [part] if isinstance(part, int) else [config.image_token_id] * (part[0] * part[1] // PATCHES_PER_TOKEN)


def _grid_positions(rows: Sequence[Row], width: int) -> torch.Tensor:
    positions = torch.zeros(3, len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = start = 0
        for part in row:
            height, columns = (1, 1) if isinstance(part, int) else (part[0] // 2, part[1] // 2)
            for number in range(height * columns):
                offset = torch.tensor([0, number // columns, number % columns])
                positions[:, index, place + number] = start + offset
            place, start = place + height * columns, start + max(height, columns)
    return positions
