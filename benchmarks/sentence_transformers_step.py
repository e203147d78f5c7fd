"""A training step with sentence-transformers' cached multiple-negatives loss on the same encoder and token budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn

from benchmarks.workloads import NUM_CROPS, Workload
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VImageProcessor


class _Encoder(nn.Module):
    """The encoder with that library's interface: features in, `sentence_embedding` out."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(workload.encoder)
        vision = self.encoder.base.config.vision_config
        self._layouts = Phi3VImageProcessor(NUM_CROPS, vision.image_size, vision.patch_size)

    def forward(self, features: dict[str, Any]) -> dict[str, Tensor]:
        inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
        if "pixel_values" in features:
            # The library slices by image, so every image has the maximum number of crops there.
            sizes = features["image_sizes"]
            crops = [1 + (height // self._crop) * (width // self._crop) for height, width in sizes.tolist()]
            rows = [image[:count] for image, count in zip(features["pixel_values"], crops, strict=True)]
            inputs |= {"pixel_values": torch.cat(rows), "image_sizes": sizes}
        return {"sentence_embedding": self.encoder(**inputs)}

    @property
    def _crop(self) -> int:
        return self._layouts.crop_size


class SentenceTransformersStep:
    """One process. The batch keeps its order and is padded per side, as that library's collator does."""

    def __init__(self, workload: Workload, temperature: float, learning_rate: float) -> None:
        model = nn.Sequential(_Encoder(workload))  # a SentenceTransformer is a sequence of modules too
        self._items = workload.items
        self._loss = CachedMultipleNegativesRankingLoss(
            model,
            scale=1 / temperature,
            mini_batch_num_tokens=workload.chunk_tokens,
            mini_batch_size=1024,  # rows of the similarity matrix at a time
        )
        parameters = [each for each in model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)

    def __call__(self, batch: Sequence[tuple[int, int]]) -> float:
        """One step; returns its loss."""
        features = [self._features([self._items[pair[side]] for pair in batch]) for side in (0, 1)]
        loss = self._loss(features, torch.empty(0))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    @staticmethod
    def _features(items: Sequence[ProcessedItem]) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        features = {
            "input_ids": pad([item.input_ids for item in items], batch_first=True),
            "attention_mask": pad([torch.ones_like(item.input_ids) for item in items], batch_first=True),
        }
        images = [item for item in items if item.has_image]
        if images:
            features["pixel_values"] = torch.stack([_with_all_crops(item.tensors["pixel_values"]) for item in images])
            features["image_sizes"] = torch.cat([item.host_values["image_sizes"] for item in images])
            features["num_images_per_sample"] = torch.tensor([item.has_image for item in items]).long()
        return features


def _with_all_crops(pixel_values: Tensor) -> Tensor:
    missing = NUM_CROPS + 1 - len(pixel_values)
    return torch.cat([pixel_values, pixel_values.new_zeros(missing, *pixel_values.shape[1:])])
