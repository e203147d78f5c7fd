"""Phi-3-V's image embedding: the CLIP tower, the order of its features in the token sequence, the projection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig


class VisionTower(nn.Module):
    """CLIP up to the input of its last layer; a separate module because of the checkpoint's name `img_processor.`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Maps crops (crops, 3, S, S) to patch features without the class token (crops, patches, width)."""
        tower = self.vision_model
        hidden: torch.Tensor = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden[:, 1:]

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Modules that no embedding depends on: the last layer and the norm after it."""
        return self.vision_model.encoder.layers[-1], self.vision_model.post_layernorm


class ImageEmbedding(nn.Module):
    """Turns crops into image tokens: CLIP features with 2 x 2 neighbours joined, separators, a two-layer projection."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision = config.vision_config
        width = 4 * vision.hidden_size
        self.grid = config.view_grid
        self.crop_size = vision.image_size
        self.img_processor = VisionTower(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None) -> torch.Tensor:
        """Image tokens of all images, concatenated.

        Args:
            pixel_values: Real crops (real crops, 3, S, S): for each image the global view, then the local crops row by
                row.
            image_sizes: Padded (height, width) of each image, int (images, 2), on the CPU. None: the crops are a dummy,
                for which the order of the result does not matter.

        Returns:
            Tokens (image tokens, hidden).
        """
        features = self._views(pixel_values)
        rows = len(features) * self.grid
        if image_sizes is None:
            num_images, order = 1, None
        else:
            num_images = len(image_sizes)
            sizes = (image_sizes // self.crop_size).tolist()
            rows, index = _sequence_order(sizes, self.grid)
            order = index.to(features.device, non_blocking=True)
        width = features.shape[-1]
        # Every entry of the table is used exactly once, so that the backward of index_select adds nothing twice in an
        # undefined order, and gives the same bits in every run.
        table = torch.cat(
            [
                features.reshape(-1, width),
                self.sub_GN.reshape(1, width).expand(rows, width),
                self.glb_GN.reshape(1, width).expand(num_images, width),
            ]
        )
        result: torch.Tensor = self.img_projection(table if order is None else table.index_select(0, order))
        return result

    def real_crops(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Removes the zero crops that pad images: (images, crops, 3, S, S) to (real crops, 3, S, S)."""
        counts = [1 + rows * columns for rows, columns in (image_sizes // self.crop_size).tolist()]
        return torch.cat([crops[:count] for crops, count in zip(pixel_values, counts, strict=True)])

    def _views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """CLIP's features with 2 x 2 neighbours joined into one, (crops, grid * grid, 4 width)."""
        hidden = self.img_processor(pixel_values)
        crops, _, width = hidden.shape
        patches: torch.Tensor = hidden.reshape(crops, self.grid, 2, self.grid, 2, width)
        return patches.permute(0, 1, 3, 2, 4, 5).reshape(crops, self.grid * self.grid, 4 * width)


def _sequence_order(sizes: Sequence[Sequence[int]], grid: int) -> tuple[int, torch.Tensor]:
    """Index of each image token of the sequence in the table [features, line separators, view separators].

    The sequence of an image: the token rows of the assembled local crops, each ended by a line separator; one view
    separator; the token rows of the global view, each ended by a line separator.

    Args:
        sizes: Rows and columns of local crops of each image.
        grid: Tokens along one side of a view.

    Returns:
        Number of line separators, and indices, int64 (image tokens,), which are a permutation of the table.
    """
    num_features = sum(1 + rows * columns for rows, columns in sizes) * grid * grid
    num_lines = sum((1 + rows) * grid for rows, _ in sizes)
    parts: list[torch.Tensor] = []
    feature, line = 0, num_features
    for image, (rows, columns) in enumerate(sizes):
        places, kinds = _order_in_image(rows, columns, grid)
        first = torch.tensor([feature, line, num_features + num_lines + image])
        parts.append(places + first[kinds])
        feature += (1 + rows * columns) * grid * grid
        line += (1 + rows) * grid
    return num_lines, torch.cat(parts)


@lru_cache(maxsize=1024)
def _order_in_image(rows: int, columns: int, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's tokens: their places among its features, line separators or view separators, int64 (tokens,), and
    which of the three each is, int64 (tokens,). Cached by shape, because datasets have few shapes."""
    views = torch.arange((1 + rows * columns) * grid * grid, device="cpu").view(-1, grid, grid)
    local = views[1:].view(rows, columns, grid, grid).permute(0, 2, 1, 3).reshape(rows * grid, columns * grid)
    lines = torch.arange((1 + rows) * grid, device="cpu")[:, None]
    separator = torch.zeros(1, dtype=torch.int64, device="cpu")
    places, kinds = [], []
    for block, ends in ((local, lines[: rows * grid]), (views[0], lines[rows * grid :])):
        places.append(torch.cat([block, ends], dim=1).flatten())
        kinds.append(torch.cat([torch.zeros_like(block), torch.ones_like(ends)], dim=1).flatten())
    return torch.cat([places[0], separator, places[1]]), torch.cat([kinds[0], separator + 2, kinds[1]])
