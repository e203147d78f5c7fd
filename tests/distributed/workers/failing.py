"""One rank of three steps that fail; the last one ends the job."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trials.rig.engines import build_engine
from trials.rig.patience import HANG_SECONDS
from vlm2vec.contrastive import CachedStep, Chunk, ContrastiveLoss, NonFiniteLossError, Pairs, StepChunks, StepLayout
from vlm2vec.ranks import close_ranks, initialize_ranks, set_collective_timeout

PAIRS = 3  # of a rank; each of its 6 items is a chunk
FAILING_RANK, FAILING_ITEM = 1, 4
FAILED_AT = "failed_at"
# Much longer than the test waits: it must not be this limit that ends the other rank.
COLLECTIVE_TIMEOUT = 10 * HANG_SECONDS
BROKEN, NOT_A_NUMBER = -1.0, float("nan")


class Encoder(nn.Module):
    """Linear; fails on a broken item, with or without a graph."""

    def __init__(self, fails_with_graph: bool, folder: Path) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.fails_with_graph = fails_with_graph
        self.folder = folder

    def forward(self, features: Tensor) -> Tensor:
        if bool((features == BROKEN).any()) and torch.is_grad_enabled() == self.fails_with_graph:
            (self.folder / FAILED_AT).write_text(str(time.time()))
            raise OSError("the image is truncated")
        return nn.functional.normalize(self.linear(features), dim=-1)


def name(rank: int, item: int) -> str:
    """Of an item, as the samples of a run are called."""
    return f"Subset/{rank * PAIRS + item % PAIRS:08d} ({'query' if item < PAIRS else 'positive'})"


def rank_step(features: Tensor) -> tuple[StepChunks, StepLayout]:
    """This rank's items, queries then targets."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    chunks = [Chunk({"features": row[None]}, 1, names=(name(rank, item),)) for item, row in enumerate(features)]
    query = torch.cat([torch.arange(PAIRS) + 2 * PAIRS * each for each in range(ranks)])
    layout = StepLayout(
        counts=(2 * PAIRS,) * ranks,
        local_order=torch.arange(2 * PAIRS),
        pairs=Pairs(query, query + PAIRS),
        rows=range(rank * PAIRS, (rank + 1) * PAIRS),
        digest=1,
    )
    return StepChunks.of(chunks), layout


def weights(engine: Any) -> list[list[float]]:
    from deepspeed.utils import safe_get_full_fp32_param

    return [safe_get_full_fp32_param(parameter).flatten().tolist() for parameter in engine.module.parameters()]


def spoiled(value: float) -> Tensor:
    """Features of which one item of one rank is not what it should be."""
    rank = dist.get_rank()
    features = torch.randn(2 * PAIRS, 4, generator=torch.Generator().manual_seed(rank))
    if rank == FAILING_RANK:
        features[FAILING_ITEM, 2] = value
    return features


def main() -> None:
    """As the training program: whatever is raised ends the rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--fails_with_graph", action="store_true")
    options = parser.parse_args()
    initialize_ranks(COLLECTIVE_TIMEOUT)
    try:
        engine = build_engine(
            Encoder(options.fails_with_graph, options.folder),
            options.stage,
            learning_rate=0.1,
            zero={"stage3_param_persistence_threshold": 0},
        )
        set_collective_timeout(COLLECTIVE_TIMEOUT)
        step = CachedStep(engine, ContrastiveLoss(0.1), Chunk({"features": torch.zeros(1, 4)}, 1))
        caught: dict[str, Any] = {"before": weights(engine)}
        try:
            step(*rank_step(spoiled(NOT_A_NUMBER)))
        except NonFiniteLossError as error:
            caught["not finite"] = str(error)
        caught["gradients"] = [parameter.grad is not None for parameter in engine.module.parameters()]
        chunks, layout = rank_step(spoiled(0.0))
        try:
            step(chunks, replace(layout, digest=1 + dist.get_rank()))
        except RuntimeError as error:
            caught["another batch"] = str(error)
        caught["after"] = weights(engine)
        # What was refused leaves nothing behind: the same objects train on.
        step(chunks, layout)
        engine.step()
        caught["trained"] = weights(engine)
        (options.folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(caught))
        dist.barrier()
        step(*rank_step(spoiled(BROKEN)))
        engine.step()
    finally:
        close_ranks()


if __name__ == "__main__":
    main()
