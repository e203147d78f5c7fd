"""This project's training step on a workload: distinct items encoded once, sorted, packed by tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.workloads import Workload
from trials.rig.engines import build_engine
from trials.rig.tiny import processed_inputs
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.batches import ChunkSizes
from vlm2vec.batches.step_plan import end_to_end_positions
from vlm2vec.contrastive import CachedStep, Chunk, ContrastiveLoss, Pairs, Phase, StepChunks, StepLayout
from vlm2vec.dora import kept_norms
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import PackedItem

# DeepSpeed clips gradients to 1 by default; the baselines do not clip.
UNCLIPPED: dict[str, Any] = {"gradient_clipping": 0.0}


class CachedStepRun:
    """A step as in a run, with its chunks already in memory."""

    def __init__(self, workload: Workload, sizes: ChunkSizes, temperature: float, learning_rate: float) -> None:
        self._engine = build_engine(copy.deepcopy(workload.encoder), 2, learning_rate, **UNCLIPPED)
        self._items = workload.items
        self._inputs = processed_inputs()
        self._sizes = sizes
        padding = self._inputs.chunk([ProcessedItem(torch.tensor([1]))])
        self._step = CachedStep(self._engine, ContrastiveLoss(temperature), padding)

    def __call__(self, batch: Sequence[tuple[int, int]]) -> float:
        """One step; returns its loss."""
        with kept_norms(self._engine):  # as a run's loop does
            output = self._step(*laid_out(batch, self._items, self._sizes, self._inputs))
        self._engine.step()
        return float(output.loss)


def laid_out(
    batch: Sequence[tuple[int, int]], all_items: Sequence[ProcessedItem], sizes: ChunkSizes, inputs: ItemEncoderInputs
) -> tuple[StepChunks, StepLayout]:
    """A batch on one rank, with its chunks in memory; phases with the same chunks share them."""
    numbers: dict[int, int] = {}
    rows = [[numbers.setdefault(item, len(numbers)) for item in pair] for pair in batch]
    items = [all_items[item] for item in numbers]
    queries = {row[0] for row in rows}
    packed = []
    for number, item in enumerate(items):
        num_tokens = len(item.input_ids)
        vision_tokens = inputs.budget_tokens(item) - num_tokens
        packed.append(PackedItem(num_tokens, item.vision_units, number in queries, vision_tokens))
    encode, keep, repeat = sizes.phases(packed)
    layout = StepLayout(
        counts=(len(items),),
        local_order=end_to_end_positions([*encode, *keep]),
        pairs=Pairs(torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])),
        rows=range(len(rows)),
        digest=0,
    )

    def made(phase: Sequence[Sequence[int]]) -> Phase:
        chunks: list[Chunk] = [inputs.chunk([items[index] for index in chunk]) for chunk in phase]
        return Phase(chunks, len(chunks), sum(chunk.has_image for chunk in chunks))

    repeated = made(repeat)
    return StepChunks(repeated if encode == repeat else made(encode), made(keep), repeated), layout
