"""Builds the DeepSpeed engine: its configuration, optimizer and learning-rate schedule."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from vlm2vec.errors import InputError
from vlm2vec.ranks import ranks_of_node, set_collective_timeout
from vlm2vec.training.settings import EngineSettings, ScheduleSettings

# Only compute is in bfloat16; master weights, moments, gradient sums and their reduction are in float32.
BF16_ENGINE: dict[str, Any] = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


def engine_config(settings: EngineSettings) -> dict[str, Any]:
    """DeepSpeed configuration of a run: the file's ZeRO settings, completed from the flags."""
    optimizer, cluster = settings.optimizer, settings.cluster
    config = dict(settings.file) | {
        # DeepSpeed requires an integer here; with accumulation 1 it scales nothing by it.
        "train_micro_batch_size_per_gpu": max(1, cluster.global_batch_size // cluster.num_ranks),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
                # torch's AdamW: nothing is compiled at the start, CPU ranks run the same code as GPUs, and a resume is
                # bit-identical, with offload too (DeepSpeed's CPU optimizer multiplies up beta^t while it runs, but
                # computes a power after a load).
                "torch_adam": True,
                "fused": True,
            },
        },
        "steps_per_print": 2**31,
    }
    if settings.precision.engine_casts:
        config |= BF16_ENGINE
        # ZeRO-3's memory-efficient linear layer rounds differently from the one that ZeRO-2 runs.
        config["zero_optimization"] = config["zero_optimization"] | {"memory_efficient_linear": False}
    return config


def build_engine(
    encoder: nn.Module,
    settings: EngineSettings,
    schedule: Callable[[Any], Any],
    loads_universal: bool = False,
) -> Any:
    """Builds a DeepSpeed engine around the encoder.

    Args:
        encoder: The encoder; parameters that require a gradient are trained.
        settings: Engine settings of the run.
        schedule: Returns the learning-rate schedule for the optimizer.
        loads_universal: Whether it will load a checkpoint of a different number of ranks or ZeRO stage.
    """
    import deepspeed

    config = engine_config(settings)
    if loads_universal:
        config["checkpoint"] = config.get("checkpoint", {}) | {"load_universal": True}
    share_cores(config["zero_optimization"])
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=encoder, model_parameters=trainable, config=config, lr_scheduler=schedule)
    set_collective_timeout(settings.cluster.collective_timeout)
    return engine


def schedule(settings: ScheduleSettings, optimizer: Any) -> Any:
    """Learning-rate schedule of an optimizer, by transformers' names.

    Raises:
        InputError: transformers has no schedule of that name.
    """
    try:
        return transformers.get_scheduler(settings.kind, optimizer, settings.warmup_steps, settings.max_steps)
    except ValueError as error:
        raise InputError(f"--lr_scheduler_type {settings.kind}: {error}") from error


def share_cores(zero_section: dict[str, Any]) -> None:
    """Gives an offloaded optimizer this rank's share of the node's cores; launchers set one thread per rank."""
    num_ranks = ranks_of_node(os.environ)  # None if the launcher does not set it: then the share is unknown
    if num_ranks and zero_section.get("offload_optimizer"):
        torch.set_num_threads(max(torch.get_num_threads(), len(os.sched_getaffinity(0)) // num_ranks))
