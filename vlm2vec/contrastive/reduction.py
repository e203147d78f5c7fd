"""Accumulates gradients over chunks and reduces them over ranks, exactly, for each kind of DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

BeforeBackward = Callable[[], None]
GradientReduction = Callable[[Any, int], AbstractContextManager[BeforeBackward]]


def gradient_reduction(engine: Any) -> GradientReduction:
    """Chooses the exact way to accumulate over chunks and reduce over ranks for an engine.

    Coalescing sums the chunks' gradients in the parameters' dtype. In float32 that is exact and needs one reduction. In
    bfloat16 every chunk would lose bits, so the engine's accumulation in float32 (`grad_accum_dtype`) is used, which
    needs one reduction per chunk under ZeRO-2/3.

    Returns:
        A context `(engine, number of backwards)` for pass 2; it yields a function to call before each backward.

    Raises:
        ValueError: The encoder has no trainable parameter.
    """
    return _coalesced if _trains_in_float32(engine) else at_last_backward


def copies_at_boundary(engine: Any) -> bool:
    """Whether a parameter's gradient is used only if the last backward of a step reaches that parameter.

    With optimizer offload and bfloat16 weights, DeepSpeed 0.19.8 copies a parameter's sum to the optimizer's memory
    when the last backward reaches it. If the last chunk has no images, the vision tower's gradient is lost.
    """
    return bool(engine.zero_offload_optimizer()) and not _trains_in_float32(engine)


def _trains_in_float32(engine: Any) -> bool:
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the encoder has no trainable parameter")
    return all(parameter.dtype == torch.float32 for parameter in trainable)


@contextmanager
def _coalesced(engine: Any, num_backwards: int) -> Iterator[BeforeBackward]:
    """Reduces once, when the block ends."""
    _forget_last_step(engine)
    with engine.coalesce_grad_reduction():
        try:
            yield lambda: None
        except BaseException:
            # DeepSpeed reduces when the block is left, even after an error: a failed rank would wait there for ranks
            # that are elsewhere, and its error would never be reported. Without gradients there is nothing to reduce.
            for parameter in engine.module.parameters():
                parameter.grad = None
            raise
        if engine.zero_optimization_stage() < 3:
            # A parameter without a gradient on some ranks would shift the other gradients to wrong places in the
            # reduction's buckets (silently, if sizes match). ZeRO-3 partitions gradients and is not affected.
            for parameter in engine.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


@contextmanager
def at_last_backward(engine: Any, num_backwards: int) -> Iterator[BeforeBackward]:
    """Lets the engine accumulate; only the last backward is a gradient accumulation boundary."""
    _forget_last_step(engine)
    done = 0

    def before_backward() -> None:
        nonlocal done
        done += 1
        engine.set_gradient_accumulation_boundary(done == num_backwards)
        if engine.zero_optimization_stage() == 3:
            # DeepSpeed 0.19.8: ZeRO-3 notices the end of a backward at the next forward. Between the backwards of kept
            # graphs there is no forward, and each backward would overwrite the gradient of the one before. After a
            # forward this call changes nothing.
            engine.optimizer.clear_backward_seen_flag()

    yield before_backward


def _forget_last_step(engine: Any) -> None:
    """Zeroes the gradient sums that DeepSpeed 0.19.8 keeps from step to step.

    ZeRO-3's first backward of a step replaces only the sums of parameters that it reaches, and optimizer offload copies
    only what the last backward reaches. Other parameters, such as the vision tower in a batch without images, would be
    updated with the last step's gradient.
    """
    optimizer = engine.optimizer
    is_zero3 = engine.zero_optimization_stage() == 3
    if is_zero3:
        optimizer.grad_partitions_flat_buffer.zero_()
    if engine.zero_offload_optimizer():
        masters = optimizer.fp32_partitioned_groups_flat if is_zero3 else optimizer.single_partition_of_fp32_groups
        for master in masters:
            if master.grad is not None:
                master.grad.zero_()
