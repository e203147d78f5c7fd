"""The entry of a training run: parse, build, train, close.

deepspeed --module vlm2vec.train --deepspeed ds_configs/zero2.json --config launch/recipes/mini.yaml [flags]
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from vlm2vec import __version__
from vlm2vec.batches import (
    BatchReader,
    ChunkSizes,
    FixedCounts,
    GlobalOrder,
    ItemEncoderInputs,
    PlanSource,
    TokenBudget,
    TrainingBatches,
)
from vlm2vec.contrastive import CachedStep, ContrastiveLoss, has_dropout
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError, run_program
from vlm2vec.lora import LoraSettings
from vlm2vec.shards import ShardSet
from vlm2vec.training.arguments import DEFAULT_CHUNK_TOKENS, NO_GRAD_FACTOR, RunArguments, parse_arguments
from vlm2vec.training.checkpoint import Checkpoints, RunRecord
from vlm2vec.training.engine import build_engine, close_ranks, initialize_ranks
from vlm2vec.training.loop import train
from vlm2vec.training.metrics import StepMeter
from vlm2vec.training.monitor import Monitor, RunMonitor, SilentMonitor

RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "webdataset")


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
    shards = ShardSet.open(arguments.data.dataset_name, _subsets(arguments))
    order = _global_order(arguments, shards, num_ranks)
    encoder = build_encoder(arguments)
    engine = build_engine(encoder, arguments, lambda optimizer: _schedule(arguments, optimizer), num_ranks)
    torch.manual_seed(arguments.training.seed * num_ranks + rank + 1)  # dropout differs from rank to rank

    compute_dtype = torch.bfloat16 if arguments.model.bf16 else torch.float32
    inputs = ItemEncoderInputs(encoder.processor, arguments.model.max_len, compute_dtype)
    reader = BatchReader(shards, inputs, _chunk_sizes(arguments, encoder), rank)
    source = PlanSource(order, reader, num_ranks, 0, arguments.training.max_steps, arguments.training.hard_negatives)
    cached_step = CachedStep(
        engine,
        ContrastiveLoss(
            arguments.training.temperature,
            arguments.training.mask_false_negatives,
            arguments.training.loss_block_rows,
        ),
        inputs.padding_chunk(),
        # Adapters are float32 on a bfloat16 base; everything else already has the compute dtype.
        autocast_dtype=compute_dtype if arguments.model.lora and arguments.model.bf16 else None,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(
        output_dir,
        encoder.save_configuration,
        lambda step: _record(step, arguments, engine, shards, order),
        exclude_frozen=arguments.model.lora,
    )
    monitor: Monitor = RunMonitor(output_dir, arguments.training.max_steps) if rank == 0 else SilentMonitor()
    monitor.configuration(arguments.as_dict())
    monitor.message(_summary(arguments, encoder, shards, order, engine, num_ranks))
    try:
        train(
            engine,
            cached_step,
            TrainingBatches(source, arguments.data.dataloader_num_workers, pin_memory=device.type != "cpu"),
            StepMeter(shards.subsets, device),
            monitor,
            checkpoints,
            arguments.training,
        )
    finally:
        monitor.close()


def build_encoder(arguments: RunArguments) -> VLM2Vec:
    """The encoder that the arguments ask for, the same on every rank."""
    model = arguments.model
    transformers.utils.logging.disable_progress_bar()  # a bar a rank would only tangle
    # Full fine-tuning loads float32, so that ZeRO's master weights are not rounded first.
    dtype = torch.bfloat16 if model.bf16 and model.lora else torch.float32
    encoder = VLM2Vec.from_pretrained(
        model.model_name,
        num_crops=model.num_crops,
        max_len=model.max_len,
        dtype=dtype,
        attn_implementation=model.attn_implementation,
    )
    if model.lora:
        encoder.add_lora(
            LoraSettings(
                r=model.lora_r,
                alpha=model.lora_alpha,
                dropout=model.lora_dropout,
                target_modules=tuple(model.lora_target_modules.split(",")),
                use_dora=model.lora_use_dora,
                seed=arguments.training.seed,
            )
        )
    encoder.freeze(vision_tower=model.freeze_vision_tower, projector=model.freeze_projector)
    if model.gradient_checkpointing:
        encoder.gradient_checkpointing_enable()
    return encoder.train()


def _subsets(arguments: RunArguments) -> list[str] | None:
    names = arguments.data.subset_name
    return None if names == ["all"] else names


def _chunk_sizes(arguments: RunArguments, encoder: VLM2Vec) -> ChunkSizes:
    """How items become chunks; `auto` and absent values are decided here."""
    training = arguments.training
    # One graph costs no memory: pass 2 holds one anyway.
    keep_graphs = 1 if training.keep_graphs == "auto" else int(training.keep_graphs)
    if training.gc_q_chunk_size and training.gc_p_chunk_size:
        return ChunkSizes(FixedCounts(training.gc_q_chunk_size, training.gc_p_chunk_size), None, keep_graphs)
    chunk_tokens = training.chunk_tokens or DEFAULT_CHUNK_TOKENS
    if not has_dropout(encoder):
        no_grad_tokens = training.no_grad_chunk_tokens or NO_GRAD_FACTOR * chunk_tokens
    elif training.no_grad_chunk_tokens is None:
        no_grad_tokens = None
    else:
        raise InputError(
            f"--no_grad_chunk_tokens {training.no_grad_chunk_tokens}: with dropout, pass 1 must run the chunks of pass "
            "2, whose masks it shares; leave it out, or set --lora_dropout 0"
        )
    return ChunkSizes(TokenBudget(chunk_tokens), no_grad_tokens, keep_graphs)


def _global_order(arguments: RunArguments, shards: ShardSet, num_ranks: int) -> GlobalOrder:
    most = arguments.data.num_sample_per_subset
    sizes = {name: min(size, most) if most else size for name, size in shards.num_samples.items()}
    return GlobalOrder(sizes, arguments.global_batch_size(num_ranks), arguments.training.seed)


def _schedule(arguments: RunArguments, optimizer: Any) -> Any:
    training = arguments.training
    try:
        return transformers.get_scheduler(
            training.lr_scheduler_type, optimizer, training.warmup_steps, training.max_steps
        )
    except ValueError as error:
        raise InputError(f"--lr_scheduler_type {training.lr_scheduler_type}: {error}") from error


def _record(step: int, arguments: RunArguments, engine: Any, shards: ShardSet, order: GlobalOrder) -> RunRecord:
    return RunRecord(
        step=step,
        num_ranks=dist.get_world_size(),
        zero_stage=int(engine.zero_optimization_stage()),
        arguments=arguments.as_dict(),
        versions={"vlm2vec": __version__, **{name: version(name) for name in RECORDED_PACKAGES}},
        data={"shards": shards.fingerprint, "order": order.digest},
    )


def _summary(
    arguments: RunArguments, encoder: VLM2Vec, shards: ShardSet, order: GlobalOrder, engine: Any, num_ranks: int
) -> str:
    """What is about to run, in one line."""
    # Under ZeRO-3 a parameter here is empty and carries its size as ds_numel.
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in encoder.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    return (
        f"{num_ranks} rank(s), ZeRO-{int(engine.zero_optimization_stage())} | {total:,} parameters, {trainable:,} "
        f"trainable | {sum(order.sizes):,} pairs of {len(shards.subsets)} subsets | global batch "
        f"{order.global_batch_size}, {order.steps_per_epoch} steps an epoch, {arguments.training.max_steps} steps"
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
