"""Collates processed items into the arguments of a Qwen-VL model's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vlm2vec.backbones.collation import JoinedRows, padded_ids
from vlm2vec.backbones.interface import CollatedItems, ProcessedItem
from vlm2vec.backbones.qwen_vl.items.image_processor import QwenVLImageProcessor
from vlm2vec.backbones.qwen_vl.items.positions import Grid, num_tokens, patch_positions, token_positions

# Names in a `ProcessedItem` of its patches before normalisation, in the order of the images in the text, and of their
# grids.
PATCHES, GRIDS = "image_patches", "image_grids"

# The smallest image, which has one token.
_DUMMY_GRID: Grid = (2, 2)

# From the grids of a chunk's images to further inputs of a family's vision tower: tensors and host values by name.
TowerArguments = Callable[[Sequence[Grid]], tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]]


@dataclass(frozen=True)
class _Image:
    """An image of a chunk.

    Attributes:
        row: Row of its item.
        places: Places of its tokens in the row, int64 (tokens,).
        grid: Grid of its patches.
        patches: The patches, uint8 (patches, channels * patch_size^2).
    """

    row: int
    places: torch.Tensor
    grid: Grid
    patches: torch.Tensor


@dataclass(frozen=True)
class Collator:
    """Builds a model's arguments.

    Attributes:
        image_processor: Normalises patches.
        image_token_id: Token that an image's features replace.
        pad_token_id: Token that pads short rows.
        positions: Kind of positions of image tokens, see `token_positions`.
        tower_arguments: Computes the family's further inputs of its vision tower.
    """

    image_processor: QwenVLImageProcessor
    image_token_id: int
    pad_token_id: int
    positions: Literal["sequence", "grid"]
    tower_arguments: TowerArguments

    def __call__(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """Builds the arguments of one call of the model; see `ItemProcessor.collate`.

        Images are sorted by their number of patches, so that images of equal size are neighbours and attention runs on
        them as one batch. Until the order is known, patches are kept as bytes, an eighth of `pixel_values` in float32.

        Returns:
            Tensors `input_ids`, `attention_mask` int64 (n, L); `position_ids` int64 (3, n, L). With images also
            `pixel_values` (patches, width), `patch_positions` int64 (patches, 2), `image_rows` int64 (tokens,), the
            places of the images' tokens among the n * L rows, and the family's tensors; as host values
            `image_lengths`, the patches of each image, and the family's host values.
        """
        rows: list[torch.Tensor] = []
        positions: list[torch.Tensor] = []
        images: list[_Image] = []
        for item in items:
            of_item = self._images(item, len(rows))
            places = [int(image.places[0]) for image in of_item]
            grids = [image.grid for image in of_item]
            positions.append(token_positions(len(item.input_ids), places, grids, self.positions))
            rows.append(item.input_ids)
            images += of_item
            del item, of_item  # frees its patches before the next item's are made
        tensors = padded_ids(rows, self.pad_token_id)
        tensors["position_ids"] = _padded_positions(positions)
        if not images:
            return CollatedItems(tensors, {}, self._dummy(dtype), len(rows), has_image=False)
        images.sort(key=lambda image: len(image.patches))
        length = tensors["input_ids"].shape[1]
        image_rows = torch.cat([image.row * length + image.places for image in images])
        more, host_values = self._of_grids([image.grid for image in images])
        pixels = self._pixel_values(images, vision_units, dtype)
        tensors = {**tensors, **more, "pixel_values": pixels, "image_rows": image_rows}
        return CollatedItems(tensors, host_values, {}, len(rows), has_image=True)

    def _images(self, item: ProcessedItem, row: int) -> list[_Image]:
        if not item.has_image:
            return []
        grids: Sequence[Grid] = item.host_values[GRIDS]
        all_places = (item.input_ids == self.image_token_id).nonzero()[:, 0]
        places = torch.split(all_places, [num_tokens(grid) for grid in grids])
        patches = torch.split(item.tensors[PATCHES], [height * width for height, width in grids])
        return [_Image(row, *each) for each in zip(places, grids, patches, strict=True)]

    def _pixel_values(self, images: list[_Image], vision_units: int, dtype: torch.dtype) -> torch.Tensor:
        """Normalises the patches of all images; removes images from the list as it goes, to free their memory."""
        pixels = JoinedRows(vision_units, dtype)
        images.reverse()
        while images:
            patches = images.pop().patches
            place = pixels.place((len(patches), self.image_processor.patch_width), patches.device)
            if not patches.is_meta:
                self.image_processor.write_pixel_values(patches, place)
        joined = pixels.joined
        assert joined is not None
        return joined

    def _of_grids(self, grids: Sequence[Grid]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors, host_values = self.tower_arguments(grids)
        lengths = tuple(rows * columns for rows, columns in grids)
        return {"patch_positions": patch_positions(grids), **tensors}, {"image_lengths": lengths, **host_values}

    def _dummy(self, dtype: torch.dtype) -> dict[str, Any]:
        tensors, host_values = self._of_grids([_DUMMY_GRID])
        pixels = torch.zeros(_DUMMY_GRID[0] * _DUMMY_GRID[1], self.image_processor.patch_width, dtype=dtype)
        nowhere = torch.empty(0, dtype=torch.int64)
        return {"pixel_values": pixels, "image_rows": nowhere, **tensors, **host_values, "dummy_image": True}


def _padded_positions(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pads positions of rows of different lengths, (3, length) each, to (3, n, L)."""
    length = max(row.shape[1] for row in rows)
    padded = torch.arange(length).repeat(3, len(rows), 1)
    for index, row in enumerate(rows):
        padded[:, index, : row.shape[1]] = row
    return padded
