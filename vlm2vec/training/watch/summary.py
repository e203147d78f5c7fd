"""What a run says in words before its first step and after its last."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from vlm2vec.messages.words import counted
from vlm2vec.training.data import RunData, order_remarks
from vlm2vec.training.flags.config_file import DEFAULT, in_force, source
from vlm2vec.training.flags.run import POLICIES, RunSettings
from vlm2vec.training.model import TrainedModel
from vlm2vec.training.watch.sinks.sink import Comparable, RunCard


def run_card(settings: RunSettings, model: TrainedModel, data: RunData) -> RunCard:
    """Describes a run that is about to start."""
    flags = {name: value for name, value in in_force(settings).items() if value is not None}
    compared = {name: value for name, value in flags.items() if POLICIES[name].effect != "place"}
    cluster = {"num_ranks": settings.cluster.num_ranks, "zero_stage": settings.cluster.zero_stage}
    return RunCard(
        facts=_facts(settings, model, data),
        flags=flags,
        changed={name: value for name, value in flags.items() if source(name, value, settings) != DEFAULT},
        comparable={name: _comparable(value) for name, value in {**compared, **cluster}.items()},
    )


def _facts(settings: RunSettings, model: TrainedModel, data: RunData) -> dict[str, str]:
    # Under ZeRO-3 a parameter here is empty and carries its size as ds_numel.
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in model.encoder.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    order, cluster = data.order, settings.cluster
    pairs, subsets = counted(sum(order.sizes), "pair"), counted(len(data.shards.subsets), "subset")
    facts = {
        "model": f"{settings.encoder.model_name}, {total:,} parameters, {trainable:,} trainable",
        "device": f"{model.device} | {counted(cluster.num_ranks, 'rank')}, ZeRO-{cluster.zero_stage}",
        "data": f"{settings.data.dataset_name}, {pairs} of {subsets}{order_remarks(order)}",
        "steps": f"{counted(settings.schedule.max_steps, 'step')} of {order.global_batch_size:,} pairs, "
        f"{order.steps_per_epoch:,} steps an epoch",
    }
    return facts | ({} if settings.arguments.recipe is None else {"recipe": str(settings.arguments.recipe)})


def _comparable(value: Any) -> Comparable:
    return value if isinstance(value, Comparable) else str(value)


def next_command(output_dir: Path, max_steps: int, is_adapter: bool) -> str:
    """What to do with a run that is done."""
    folder = shlex.quote(str(output_dir))
    exported = shlex.quote(f"{output_dir}-{'adapter' if is_adapter else 'model'}")
    return f"done: all {max_steps} steps. Export: python -m vlm2vec.export {folder} {exported}"
