"""The training loop."""

from __future__ import annotations

from typing import Any

from vlm2vec.batches import TrainingBatches
from vlm2vec.contrastive import CachedStep, LearnedTemperature
from vlm2vec.training.arguments import TrainingArguments
from vlm2vec.training.checkpoint import Checkpoints
from vlm2vec.training.evaluation import NoEvaluation, RunEvaluation
from vlm2vec.training.metrics import StepMeter
from vlm2vec.training.monitor import Monitor


def train(
    engine: Any,
    cached_step: CachedStep,
    batches: TrainingBatches,
    meter: StepMeter,
    monitor: Monitor,
    checkpoints: Checkpoints,
    arguments: TrainingArguments,
    temperature: LearnedTemperature | None = None,
    evaluation: RunEvaluation | NoEvaluation | None = None,
) -> None:
    """Runs all steps that `batches` yields, writes figures and checkpoints.

    Raises:
        InputError: A sample cannot be read.
        NonFiniteLossError: The loss of a step is not a number; that step updates nothing.
    """
    evaluation = evaluation or NoEvaluation()
    for batch in batches:
        header = batch.header
        output = cached_step.cache_step(batch.chunks, header.layout)
        learning_rate = engine.get_lr()[0]
        engine.step()
        if temperature is not None:
            # On the schedule of the other parameters.
            temperature.step(arguments.temperature_learning_rate * learning_rate / arguments.learning_rate)
        meter.add(header, output)
        monitor.advance()
        done = header.step + 1
        is_last = done == arguments.max_steps
        if is_last or done % arguments.logging_steps == 0:
            figures = {
                **meter.report(batches.seconds_waiting),
                "learning_rate": learning_rate,
                "gradient_norm": float(engine.get_global_grad_norm()),
                "epoch": float(header.epoch),
                "temperature": float(temperature.value) if temperature is not None else arguments.temperature,
            }
            monitor.figures(done, figures)
        is_best = evaluation.after_step(engine, done, is_last, monitor)
        if is_last or is_best or (arguments.save_steps and done % arguments.save_steps == 0):
            checkpoint = checkpoints.save(engine, done)
            monitor.message(f"checkpoint: {checkpoint}")
            if is_best:
                evaluation.keep(checkpoint)
