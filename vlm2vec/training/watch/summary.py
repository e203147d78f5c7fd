"""What a run says in words before its first step and after its last."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlm2vec.messages.words import counted
from vlm2vec.training.data import RunData, order_remarks
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.model import TrainedModel


def summary(settings: RunSettings, model: TrainedModel, data: RunData) -> str:
    """What is about to run, in one line."""
    # Under ZeRO-3 a parameter here is empty and carries its size as ds_numel.
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in model.encoder.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    order, subsets = data.order, counted(len(data.shards.subsets), "subset")
    return (
        f"{model.device} | {settings.cluster.num_ranks} rank(s), ZeRO-{settings.cluster.zero_stage} | "
        f"{total:,} parameters, {trainable:,} trainable | {sum(order.sizes):,} pairs of {subsets} | "
        f"global batch {order.global_batch_size}, {order.steps_per_epoch} steps an epoch, "
        f"{settings.schedule.max_steps} steps"
        f"{order_remarks(order)}"
    )


def next_commands(output_dir: Path, max_steps: int, is_adapter: bool) -> str:
    """What to do with a run that is done."""
    folder = shlex.quote(str(output_dir))
    exported = shlex.quote(f"{output_dir}-{'adapter' if is_adapter else 'model'}")
    return (
        f"done: all {max_steps} steps. Export: python -m vlm2vec.export {folder} {exported}\n"
        f"Curves: tensorboard --logdir {folder}"
    )
