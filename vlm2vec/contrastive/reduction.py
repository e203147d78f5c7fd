"""Reducing gradients over the ranks once a step, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

BeforeBackward = Callable[[], None]
GradientReduction = Callable[[Any, int], AbstractContextManager[BeforeBackward]]


def gradient_reduction(engine: Any) -> GradientReduction:
    """The way to accumulate over chunks and reduce over ranks that is exact for this engine.

    Coalescing sums the chunks' gradients in the parameters' own dtype. In fp32 that is exact and needs one reduction;
    in bf16 it loses bits with every chunk, so there the engine's own accumulation (fp32, `grad_accum_dtype`) is used,
    at the price of a reduction a chunk under ZeRO-2/3.

    Returns:
        A context `(engine, number of backwards)` around pass 2; it yields what to call before each backward.

    Raises:
        ValueError: Nothing to train.
    """
    return _coalesced if _trains_in_float32(engine) else at_last_backward


def copies_at_boundary(engine: Any) -> bool:
    """Whether a parameter's gradient counts only if the last backward of a step reaches that parameter.

    With optimizer offload and its own accumulation, DeepSpeed 0.19.8 copies sums to the optimizer's memory as the last
    backward reaches their parameters: where that is a chunk of texts, the vision tower's gradient is lost.
    """
    return bool(engine.zero_offload_optimizer()) and not _trains_in_float32(engine)


def _trains_in_float32(engine: Any) -> bool:
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the encoder has no trainable parameter")
    return all(parameter.dtype == torch.float32 for parameter in trainable)


@contextmanager
def _coalesced(engine: Any, num_backwards: int) -> Iterator[BeforeBackward]:
    """One reduction when the block ends."""
    _forget_last_step(engine)
    with engine.coalesce_grad_reduction():
        try:
            yield lambda: None
        except BaseException:
            # Leaving the block reduces what there is, failure or not: a rank that failed would wait there for ranks
            # that are elsewhere, and its error would never be told. Without gradients there is nothing to reduce.
            for parameter in engine.module.parameters():
                parameter.grad = None
            raise
        if engine.zero_optimization_stage() < 3:
            # A parameter without gradient on some ranks would shift the others' gradients to wrong places in the
            # reduction's buckets (equal sizes: silently). ZeRO-3 partitions gradients and needs no filling.
            for parameter in engine.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


@contextmanager
def at_last_backward(engine: Any, num_backwards: int) -> Iterator[BeforeBackward]:
    """The engine accumulates by itself; the last backward is the boundary."""
    _forget_last_step(engine)
    done = 0

    def before_backward() -> None:
        nonlocal done
        done += 1
        engine.set_gradient_accumulation_boundary(done == num_backwards)
        if engine.zero_optimization_stage() == 3:
            # ZeRO-3 counts a backward at the next forward. Between the backwards of kept graphs there is none, and
            # every backward would overwrite the gradient of the one before it (DeepSpeed 0.19.8). After a forward
            # this changes nothing.
            engine.optimizer.clear_backward_seen_flag()

    yield before_backward


def _forget_last_step(engine: Any) -> None:
    """Zeroes the sums of gradients that DeepSpeed 0.19.8 keeps from one step to the next.

    ZeRO-3's first backward of a step replaces the sums of those parameters that take part in it, and optimizer offload
    copies only what takes part in the last one. Other parameters, such as the vision tower in a batch without images,
    would be updated with the last step's gradient.
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
