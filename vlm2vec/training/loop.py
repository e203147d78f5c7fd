"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from vlm2vec.batches import TrainingBatch
from vlm2vec.contrastive import CachedStep
from vlm2vec.training.arguments import TrainingArguments
from vlm2vec.training.checkpoint import Checkpoints
from vlm2vec.training.metrics import StepMeter
from vlm2vec.training.monitor import Monitor


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def train(
    engine: Any,
    cached_step: CachedStep,
    batches: Iterator[TrainingBatch],
    meter: StepMeter,
    monitor: Monitor,
    checkpoints: Checkpoints,
    arguments: TrainingArguments,
) -> None:
    """Runs all steps that `batches` yields, writes figures and checkpoints.

    Raises:
        InputError: A sample cannot be read.
        TrainingDivergedError: The loss is not finite at a step whose figures are written.
    """
    for batch, seconds_waiting in _timed(batches):
        output = cached_step.cache_step(batch.chunks, batch.layout)
        learning_rate = engine.get_lr()[0]
        engine.step()
        meter.add(batch, output, seconds_waiting)
        monitor.advance()
        done = batch.step + 1
        is_last = done == arguments.max_steps
        if is_last or done % arguments.logging_steps == 0:
            figures = {
                **meter.report(),
                "learning_rate": learning_rate,
                "gradient_norm": float(engine.get_global_grad_norm()),
                "epoch": float(batch.epoch),
            }
            monitor.figures(done, figures)
            if not math.isfinite(figures["loss"]):
                raise TrainingDivergedError(
                    f"the loss is {figures['loss']} at step {done}; the last checkpoint is from before it: "
                    "lower --learning_rate or raise --warmup_steps"
                )
        if is_last or (arguments.save_steps and done % arguments.save_steps == 0):
            monitor.message(f"checkpoint: {checkpoints.save(engine, done)}")


def _timed(batches: Iterator[TrainingBatch]) -> Iterator[tuple[TrainingBatch, float]]:
    """Each batch with the seconds that the step waited for it."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start
