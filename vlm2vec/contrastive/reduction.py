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


def can_keep_graphs(engine: Any) -> bool:
    """Whether backwards may follow one another without a forward in between.

    Not under ZeRO-3 with its own accumulation: it counts a backward at the next forward, and a second backward before
    that overwrites the first one's gradient instead of adding to it, without an error (DeepSpeed 0.19.8, measured:
    98 % of the gradient lost).
    """
    return engine.zero_optimization_stage() < 3 or _trains_in_float32(engine)


def _trains_in_float32(engine: Any) -> bool:
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the encoder has no trainable parameter")
    return all(parameter.dtype == torch.float32 for parameter in trainable)


@contextmanager
def _coalesced(engine: Any, num_backwards: int) -> Iterator[BeforeBackward]:
    """One reduction when the block ends."""
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
    done = 0

    def before_backward() -> None:
        nonlocal done
        done += 1
        engine.set_gradient_accumulation_boundary(done == num_backwards)

    yield before_backward
