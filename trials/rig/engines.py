"""DeepSpeed engines around a model, for trials, benchmarks and tests that measure less than a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.ranks import set_collective_timeout

# ZeRO-3 then fetches every parameter when it is used and frees it at once, so traffic depends on the calls alone. By
# default small parameters are kept, and how many are prefetched depends on earlier steps.
FETCH_WHEN_USED = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ConstantLR:
    """A schedule with a constant learning rate."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def build_engine(
    model: nn.Module, stage: int, learning_rate: float = 0.0, zero: Mapping[str, Any] | None = None, **more: Any
) -> Any:
    """Builds an engine with torch's AdamW and no weight decay. Collectives time out after `COLLECTIVE_SECONDS`.

    Args:
        model: The model; its parameters with `requires_grad` are trained.
        stage: The ZeRO stage.
        learning_rate: The learning rate; 0 leaves the weights unchanged.
        zero: Further entries of the section "zero_optimization"; those for ZeRO-3 have no effect in other stages.
        more: Further entries of DeepSpeed's configuration, or sections that replace the ones made here.
    """
    import deepspeed

    optimizer = {"lr": learning_rate, "weight_decay": 0.0, "torch_adam": True}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[each for each in model.parameters() if each.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": {"type": "AdamW", "params": optimizer},
            "zero_optimization": {"stage": stage, **(zero or {})},
            "steps_per_print": 10**9,
            **more,
        },
    )
    set_collective_timeout(COLLECTIVE_SECONDS)
    return engine
