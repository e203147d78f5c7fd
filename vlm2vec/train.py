"""The entry of a training run: parse, build, train, close.

deepspeed --module vlm2vec.train --deepspeed ds_configs/zero2.json --config launch/recipes/mini.yaml [flags]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vlm2vec.batches import BatchReader, ItemEncoderInputs, PlanSource, TrainingBatches
from vlm2vec.contrastive import CachedStep
from vlm2vec.errors import InputError, run_program
from vlm2vec.shards import ShardSet
from vlm2vec.training.arguments import RunArguments, parse_arguments
from vlm2vec.training.build import (
    build_encoder,
    chosen_subsets,
    chunk_sizes,
    compare_data,
    contrastive_loss,
    global_order,
    learned_temperature,
    run_record,
    schedule,
    summary,
)
from vlm2vec.training.checkpoint import Checkpoints
from vlm2vec.training.engine import build_engine, close_ranks, initialize_ranks
from vlm2vec.training.evaluation import build_evaluation
from vlm2vec.training.loop import train
from vlm2vec.training.metrics import StepMeter
from vlm2vec.training.monitor import Monitor, RunMonitor, SilentMonitor


def main() -> None:
    """Runs one training from the command line."""
    arguments = parse_arguments(sys.argv[1:])
    device = initialize_ranks(arguments.training.collective_timeout)
    try:
        run(arguments, device)
    finally:
        close_ranks()


def run(arguments: RunArguments, device: torch.device) -> None:
    """Builds everything and trains; all ranks call it."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    output_dir = Path(arguments.training.output_dir)
    if any(output_dir.glob("checkpoint-*")):
        raise InputError(f"--output_dir {output_dir}: holds another run's checkpoints; remove it or choose another")
    shards = ShardSet.open(arguments.data.dataset_name, chosen_subsets(arguments))
    order = global_order(arguments, shards, num_ranks)
    compare_data(shards, order, device)
    encoder = build_encoder(arguments)
    engine = build_engine(encoder, arguments, lambda optimizer: schedule(arguments, optimizer), num_ranks)
    compute_dtype = torch.bfloat16 if arguments.model.bf16 else torch.float32
    inputs = ItemEncoderInputs(encoder.processor, arguments.model.max_len, compute_dtype)
    temperature = learned_temperature(arguments, device)
    cached_step = CachedStep(
        engine,
        contrastive_loss(arguments, temperature, encoder.hidden_size),
        inputs.padding_chunk(),
        # Adapters are float32 on a bfloat16 base; everything else already has the compute dtype.
        autocast_dtype=compute_dtype if arguments.model.lora and arguments.model.bf16 else None,
    )
    sizes = chunk_sizes(arguments, engine, cached_step.model_call, inputs)
    torch.manual_seed(arguments.training.seed * num_ranks + rank + 1)  # dropout differs from rank to rank
    reader = BatchReader(shards, inputs, sizes, rank)
    source = PlanSource(order, reader, num_ranks, 0, arguments.training.max_steps, arguments.training.hard_negatives)
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(
        output_dir,
        encoder.save_configuration,
        lambda step: run_record(step, arguments, engine, shards, order, temperature),
        exclude_frozen=arguments.model.lora,
    )
    monitor: Monitor = RunMonitor(output_dir, arguments.training.max_steps) if rank == 0 else SilentMonitor()
    monitor.configuration(arguments.as_dict())
    monitor.message(summary(arguments, encoder, shards, order, engine, num_ranks))
    try:
        train(
            engine,
            cached_step,
            TrainingBatches(source, arguments.data.dataloader_num_workers, pin_memory=device.type != "cpu"),
            StepMeter(shards.subsets, device),
            monitor,
            checkpoints,
            arguments.training,
            temperature,
            build_evaluation(
                arguments.evaluation,
                output_dir,
                inputs,
                cached_step.model_call,
                arguments.data.dataloader_num_workers,
                device,
            ),
        )
    finally:
        monitor.close()


if __name__ == "__main__":
    sys.exit(run_program(main))
