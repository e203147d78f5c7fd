"""The original's cached step; our own implementation, for comparison.

According to its public code, the original pads each side of the pairs to that side's longest item, and cuts it into
chunks of 4 rows in their order. Every item is encoded as often as it occurs, as in
benchmarks/original_encoder.py. Queries and targets are encoded one after the other in both passes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.original_encoder import OriginalEncoder, padded
from benchmarks.workloads import NUM_CROPS, Workload
from vlm2vec.contrastive.gradcache import RandContext

CHUNK_ROWS = 4


class OriginalStep:
    """One process. With more, the original also reduces all gradients twice per step, once per side."""

    def __init__(self, workload: Workload, temperature: float, learning_rate: float) -> None:
        encoder = copy.deepcopy(workload.encoder)
        self._items = workload.items
        self._temperature = temperature
        parameters = [each for each in encoder.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
        self._encode = OriginalEncoder(encoder)

    def __call__(self, batch: Sequence[tuple[int, int]]) -> float:
        """One step; returns its loss."""
        sides = [padded([self._items[pair[side]] for pair in batch], CHUNK_ROWS, NUM_CROPS) for side in (0, 1)]
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
        return float(loss.detach())
