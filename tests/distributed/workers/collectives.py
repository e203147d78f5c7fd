"""One rank of cached steps whose collectives are recorded, with the part of the step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trials.exactness_grid import BATCHES, TEMPERATURE
from trials.exactness_reference import build_encoder, padding_chunk, rank_batch
from trials.rig.collectives import Collectives
from trials.rig.engines import FETCH_WHEN_USED, build_engine
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.batches.step_plan import ChunkSizes
from vlm2vec.contrastive import CachedStep, ContrastiveLoss
from vlm2vec.inputs.packing import FixedCounts
from vlm2vec.ranks import close_ranks, initialize_ranks

PASS_1, LOSS, PASS_2, UPDATE = "pass 1", "gather and loss", "pass 2", "update"
STAGES = (1, 2, 3)
# Rank 0 has most items and nearly all images; the name says how many chunks it makes of them.
BATCH = BATCHES["text only on some ranks"]
CHUNKS = {
    "3": ChunkSizes(FixedCounts(10, 3)),
    "10": ChunkSizes(FixedCounts(2, 1)),
    "10, 2 kept": ChunkSizes(FixedCounts(2, 1), keep_graphs=2),
}


@dataclass(frozen=True)
class Recorded:
    """One step on one rank; `collectives` are (part of the step, operator, bytes), `phases` its chunks."""

    stage: int
    chunks: str
    phases: list[tuple[int, int]]
    counts: list[int]
    collectives: list[tuple[str, str, int]]


class StepInParts(CachedStep):
    """Says which part of the step runs."""

    def __init__(self, collectives: Collectives, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._collectives = collectives

    def _during(self, part: str, method: Callable[..., Any], *arguments: Any) -> Any:
        self._collectives.part = part
        result = method(*arguments)
        self._collectives.part = UPDATE
        return result

    def forward_no_grad(self, *arguments: Any) -> Any:
        return self._during(PASS_1, super().forward_no_grad, *arguments)

    def build_cache(self, *arguments: Any) -> Any:
        return self._during(LOSS, super().build_cache, *arguments)

    def forward_backward(self, *arguments: Any) -> None:
        self._during(PASS_2, super().forward_backward, *arguments)


def record(engine: Any, stage: int, chunks: str) -> Recorded:
    batch = rank_batch(BATCH, CHUNKS[chunks], dist.get_rank(), dist.get_world_size())
    with Collectives() as collectives:
        step = StepInParts(collectives, engine, ContrastiveLoss(TEMPERATURE), padding_chunk())
        step(batch.chunks, batch.layout)
        engine.step()
    phases = [(phase.num_chunks, phase.num_image_chunks) for phase in batch.chunks.phases]
    return Recorded(stage, chunks, phases, list(batch.layout.counts), collectives.seen)


def main(folder: Path) -> None:
    """Writes what this rank saw of every step."""
    initialize_ranks(COLLECTIVE_SECONDS)
    recorded = []
    for stage in STAGES:
        engine = build_engine(build_encoder("full", dropout=0.0), stage, zero=FETCH_WHEN_USED)
        recorded += [record(engine, stage, chunks) for chunks in CHUNKS]
        engine.destroy()
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps([asdict(each) for each in recorded]))
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
