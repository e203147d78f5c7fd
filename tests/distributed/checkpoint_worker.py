"""One rank that changes a model through the engine, writes a checkpoint, and says what the live weights encode."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

from vlm2vec.train import build_encoder
from vlm2vec.training.arguments import parse_arguments
from vlm2vec.training.checkpoint import Checkpoints, RunRecord
from vlm2vec.training.engine import build_engine, close_ranks, initialize_ranks

TEXTS = ["a three to the left of a seven", "Represent the given picture.", "", "coffee"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    options, flags = parser.parse_known_args()
    initialize_ranks(60)
    arguments = parse_arguments(flags)
    encoder = build_encoder(arguments)
    schedule = torch.optim.lr_scheduler.ConstantLR
    engine = build_engine(encoder, arguments, lambda optimizer: schedule(optimizer, 1.0), dist.get_world_size())
    inputs = encoder.processor.process_item("step in some direction", [], None).input_ids[None]
    for _ in range(2):
        vectors = engine(input_ids=inputs, attention_mask=torch.ones_like(inputs), dummy_image=True)
        engine.backward(vectors[:, :7].sum())
        engine.step()
    Checkpoints(
        options.work,
        encoder.save_configuration,
        lambda step: RunRecord(
            step, dist.get_world_size(), engine.zero_optimization_stage(), arguments.as_dict(), {}, {}
        ),
        exclude_frozen=arguments.model.lora,
    ).save(engine, 2)
    live = encoder.encode(texts=TEXTS)  # on all ranks: under ZeRO-3 each holds a part of every weight
    if dist.get_rank() == 0:
        torch.save(live, options.work / "live.pt")
    close_ranks()


if __name__ == "__main__":
    main()
