"""One rank: bf16 gradients of a cached step in many chunks and of a plain step, compared with float32.

Before the steps the memory of a graph is measured, as a run does; it must leave no trace in them.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch.distributed as dist

from tests.distributed.workers.collectives import PASS_2, StepInParts
from trials.exactness import relative_error
from trials.exactness_grid import BATCHES, CHUNKS, TEMPERATURE
from trials.exactness_reference import build_encoder, padding_chunk, plain_gradient, rank_batch
from trials.rig.collectives import Collectives
from trials.rig.engines import build_engine
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import CachedStep, ContrastiveLoss
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.engine import BF16_ENGINE
from vlm2vec.training.preflight.graph_memory import DeviceMemory, graphs_that_fit

GRAPH_BYTES, TOTAL_BYTES = 10**9, 20 * 10**9
FREE_BYTES = (9 * 10**9, 7 * 10**9)  # of rank 0 and rank 1; a fifth of it is left free, and two graphs


def measured_graphs(step: CachedStep) -> int:
    """`graphs_that_fit` on a device that this machine lacks."""
    free = FREE_BYTES[dist.get_rank()]
    readings = iter([DeviceMemory(0, free + GRAPH_BYTES, TOTAL_BYTES), DeviceMemory(GRAPH_BYTES, free, TOTAL_BYTES)])
    return graphs_that_fit(step.engine, step.model_call, padding_chunk(), lambda: next(readings))


def offload_errors(stage: int) -> dict[str, float]:
    """Of steps with optimizer offload, where the last chunks hold texts only, and all chunks after that."""
    encoder = build_encoder("full", 0.0)
    for parameter in encoder.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
    reference = copy.deepcopy(encoder)
    engine = build_engine(encoder, stage, zero={"offload_optimizer": {"device": "cpu"}}, **BF16_ENGINE)
    step = CachedStep(engine, ContrastiveLoss(TEMPERATURE), padding_chunk())
    errors = {}
    for name in ("mixed", "no images"):
        batch = rank_batch(BATCHES[name], ChunkSizes(TokenBudget(70)), dist.get_rank(), dist.get_world_size())
        expected = plain_gradient(reference, batch, seed=0)
        step.cache_step(batch.chunks, batch.layout)
        errors[f"ZeRO-{stage}, offload, {name}"] = relative_error(engine, expected)
        engine.step()
    engine.destroy()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    initialize_ranks(COLLECTIVE_SECONDS)

    errors: dict[str, float] = {}
    reductions: dict[str, int] = {}
    graphs: dict[str, int] = {}
    for stage in (1, 2, 3):
        encoder = build_encoder("full", 0.0)
        for parameter in encoder.parameters():  # so that both start from the same weights
            parameter.data.copy_(parameter.data.bfloat16())
        reference = copy.deepcopy(encoder)
        engine = build_engine(encoder, stage, **BF16_ENGINE)
        graphs[f"ZeRO-{stage}"] = measured_graphs(CachedStep(engine, ContrastiveLoss(TEMPERATURE), padding_chunk()))
        for chunks in CHUNKS:
            sizes = ChunkSizes(CHUNKS[chunks].packing)
            batch = rank_batch(BATCHES["mixed"], sizes, dist.get_rank(), dist.get_world_size())
            expected = plain_gradient(reference, batch, seed=0)
            with Collectives() as collectives:
                step = StepInParts(collectives, engine, ContrastiveLoss(TEMPERATURE), padding_chunk())
                step.cache_step(batch.chunks, batch.layout)
            name = f"ZeRO-{stage}, {chunks}"
            errors[name] = relative_error(engine, expected)
            reductions[name] = sum(part == PASS_2 and "reduce" in kind for part, kind, _ in collectives.seen)
            engine.step()
        kept = rank_batch(
            BATCHES["mixed"], ChunkSizes(TokenBudget(70), None, 2), dist.get_rank(), dist.get_world_size()
        )
        CachedStep(engine, ContrastiveLoss(TEMPERATURE), padding_chunk()).cache_step(kept.chunks, kept.layout)
        errors[f"ZeRO-{stage}, kept graphs"] = relative_error(engine, expected)
        engine.destroy()
    for stage in (1, 2, 3):
        errors |= offload_errors(stage)
    if dist.get_rank() == 0:
        options.output.write_text(json.dumps({"errors": errors, "reductions": reductions, "graphs": graphs}))
    close_ranks()


if __name__ == "__main__":
    main()
