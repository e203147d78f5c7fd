"""The original's way of making a cached step, written anew for comparison.

What it does, by its public code: each side of the pairs is padded to that side's longest item and cut into chunks of 4
rows in the order in which the rows come; every item is encoded as often as it occurs; the vision tower runs on zero
crops up to `num_crops` and through its last layer; hidden states of all layers are kept and `lm_head` is computed at
every position. Queries and targets are encoded one after the other in both passes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import NUM_CROPS, Workload
from vlm2vec.contrastive.gradcache import RandContext
from vlm2vec.phi3_v import ProcessedItem

CHUNK_ROWS = 4


class OriginalStep:
    """One process; with more of them the original also reduces all gradients twice a step, once a side."""

    def __init__(self, workload: Workload, temperature: float, learning_rate: float) -> None:
        self._encoder = copy.deepcopy(workload.encoder)
        self._items = workload.items
        self._temperature = temperature
        parameters = [each for each in self._encoder.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
        config = self._encoder.base.config
        self._lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._crop = config.vision_config.image_size
        self._hidden_states: list[Tensor] = []
        for layer in self._encoder.base.model.layers:
            layer.register_forward_hook(lambda module, inputs, output: self._hidden_states.append(output))

    def __call__(self, batch: Sequence[tuple[int, int]]) -> float:
        """One step; returns its loss."""
        sides = [self._chunks([self._items[pair[side]] for pair in batch]) for side in (0, 1)]
        states: list[list[RandContext]] = [[], []]
        representations = []
        with torch.no_grad():
            for side, chunks in enumerate(sides):
                rows = []
                for chunk in chunks:
                    states[side].append(RandContext(chunk["input_ids"]))
                    rows.append(self._encode(chunk))
                representations.append(torch.cat(rows).requires_grad_())
        queries, targets = representations
        loss = F.cross_entropy(queries @ targets.T / self._temperature, torch.arange(len(batch)))
        loss.backward()
        for side, chunks in enumerate(sides):
            gradient = representations[side].grad
            assert gradient is not None
            for chunk, state, part in zip(chunks, states[side], gradient.split(CHUNK_ROWS), strict=True):
                with state:
                    surrogate = torch.dot(self._encode(chunk).flatten(), part.flatten())
                surrogate.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss)

    def _chunks(self, items: Sequence[ProcessedItem]) -> list[dict[str, Any]]:
        ids = nn.utils.rnn.pad_sequence([item.input_ids for item in items], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(item.input_ids) for item in items], batch_first=True)
        chunks: list[dict[str, Any]] = []
        for start in range(0, len(items), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            pictures = [item for item in items[rows] if item.pixel_values is not None]
            chunk: dict[str, Any] = {"input_ids": ids[rows], "attention_mask": mask[rows]}
            if pictures:
                chunk["pixel_values"] = torch.cat([item.pixel_values for item in pictures])
                chunk["image_sizes"] = torch.cat([item.image_sizes for item in pictures])
                chunk["zero_crops"] = len(pictures) * (NUM_CROPS + 1) - len(chunk["pixel_values"])
            chunks.append(chunk)
        return chunks

    def _encode(self, chunk: dict[str, Any]) -> Tensor:
        self._hidden_states.clear()
        inputs = {name: value for name, value in chunk.items() if name != "zero_crops"}
        representations: Tensor = self._encoder(**inputs, strict_original=True)
        with torch.no_grad():  # nothing of the loss goes through it
            self._lm_head(self._hidden_states[-1]).float()
        if "pixel_values" in chunk:
            representations = representations + 0.0 * self._unseen(chunk["pixel_values"], chunk["zero_crops"])
        return representations

    def _unseen(self, pixel_values: Tensor, zero_crops: int) -> Tensor:
        """The vision tower's work that no embedding sees: its last layer, and crops of zeros."""
        tower = self._encoder.base.model.vision_embed_tokens.img_processor.vision_model
        with torch.no_grad():
            patches = tower.embeddings(pixel_values[:1]).expand(len(pixel_values) + zero_crops, -1, -1)
            tower.encoder.layers[-1](patches, None)
        if not zero_crops:
            return torch.zeros(())
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values.new_zeros(zero_crops, 3, self._crop, self._crop)))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden.sum()
