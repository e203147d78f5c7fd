"""The training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm2vec.batches import TrainingBatches
from vlm2vec.contrastive import CachedStep, DamagedItemsError, LearnedTemperature, StepStoppedError
from vlm2vec.contrastive.watch import Place
from vlm2vec.dora import kept_norms
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.checkpoints.rank_state import rank_state
from vlm2vec.training.checkpoints.writer import CheckpointError, Checkpoints
from vlm2vec.training.evaluation import NoEvaluation, RunEvaluation
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.skipped_steps import SkippedSteps
from vlm2vec.training.stop import StopRequest
from vlm2vec.training.watch.metrics import StepMeter
from vlm2vec.training.watch.monitor import Monitor
from vlm2vec.training.watch.parts import RunPart
from vlm2vec.training.watch.profiling import StepProfiles
from vlm2vec.training.watch.run_watch import RunWatch

# So many checkpoints in a row that cannot be written end a run: what it does after that would most likely be lost.
MOST_FAILED_SAVES = 3
_OPTIMIZER_STEP = Place(RunPart.OPTIMIZER, "optimizer step")


def train(
    engine: Any,
    cached_step: CachedStep,
    batches: TrainingBatches,
    meter: StepMeter,
    monitor: Monitor,
    checkpoints: Checkpoints,
    settings: RunSettings,
    stop: StopRequest,
    watch: RunWatch,
    bad_samples: BadSamples,
    profiles: StepProfiles,
    temperature: LearnedTemperature | None = None,
    evaluation: RunEvaluation | NoEvaluation | None = None,
) -> bool:
    """Runs all steps that `batches` yields, writes figures and checkpoints.

    Returns:
        Whether all steps are done; False if a rank was asked to stop, with a checkpoint of the steps done by then.

    Raises:
        InputError: The shards cannot be reached, more samples are unreadable than may be, or the gradients of several
            steps in a row are not finite.
        NonFiniteLossError: The loss of a step is not a number; that step updates nothing.
        CheckpointError: The last checkpoint could not be written.
    """
    evaluation = evaluation or NoEvaluation()
    temperature_rate, every = settings.loss.temperature_learning_rate, settings.checkpoints.every
    skipped_steps = SkippedSteps(engine)
    for batch in watch.steps(batches):
        header = batch.header
        profiles.before(header.step + 1)
        try:
            with kept_norms(engine):
                output = cached_step.cache_step(batch.chunks, header.layout, stop.requested)
        except StepStoppedError:
            if checkpoints.last_step != header.step:
                with watch.pause(RunPart.CHECKPOINT):
                    save(engine, header.step, meter, monitor, checkpoints, run_goes_on=False)
            name = stop.name(engine.device)
            monitor.message(f"stopped at step {header.step} by {name}; start again with --resume auto to resume")
            return False
        except DamagedItemsError:
            bad_samples.replace(batches, monitor, header.step)
            continue
        with watch.part(RunPart.OPTIMIZER, _OPTIMIZER_STEP):
            learning_rate = engine.get_lr()[0]
            engine.step()
            was_skipped = skipped_steps.after_update(header.step + 1, monitor)
            if temperature is not None and was_skipped:
                temperature.drop_gradient()
            elif temperature is not None and temperature_rate is not None:
                # On the schedule of the other parameters.
                temperature.step(temperature_rate * learning_rate / settings.optimizer.learning_rate)
        with watch.pause(RunPart.PROFILE):
            profiles.after(header.step + 1)
        meter.add(header, output)
        monitor.advance()
        done = header.step + 1
        is_last = done == settings.schedule.max_steps
        if is_last or done % settings.watch.logging_steps == 0:
            figures = meter.report()
            figures.values["learning_rate"] = learning_rate
            figures.values["gradient_norm"] = float(engine.get_global_grad_norm())
            figures.values["epoch"] = float(header.epoch)
            figures.values["bad_samples"] = float(len(bad_samples))
            figures.values["skipped_steps"] = float(skipped_steps.total)
            figures.values["temperature"] = (
                float(temperature.value) if temperature is not None else settings.loss.temperature
            )
            monitor.figures(done, figures)
        with watch.pause(RunPart.EVALUATION):
            is_best = evaluation.after_step(engine, done, is_last, monitor)
        if is_last or is_best or (every and done % every == 0):
            with watch.pause(RunPart.CHECKPOINT):
                checkpoint = save(engine, done, meter, monitor, checkpoints, run_goes_on=not is_last)
                if is_best and checkpoint is not None:
                    evaluation.keep(checkpoint)
    return True


def save(
    engine: Any, done: int, meter: StepMeter, monitor: Monitor, checkpoints: Checkpoints, run_goes_on: bool
) -> Path | None:
    """Writes a checkpoint; a failure stops a run that is about to end, or in which several in a row have failed.

    Returns:
        Its folder; None if it could not be written and the run goes on.

    Raises:
        CheckpointError: It could not be written, and the run is about to end or `MOST_FAILED_SAVES` have failed.
    """
    try:
        checkpoint = checkpoints.save(engine, done, rank_state(engine.device, meter))
    except CheckpointError as error:
        if not run_goes_on:
            raise
        last = f"step {checkpoints.last_step}" if checkpoints.last_step else "none"
        if checkpoints.failed_in_a_row >= MOST_FAILED_SAVES:
            raise CheckpointError(
                f"{error}; {checkpoints.failed_in_a_row} checkpoints in a row have failed, so the run ends (last valid "
                f"checkpoint: {last}). Mend --output_dir, then start again with --resume auto"
            ) from error
        monitor.message(f"warning: {error}; the run goes on, the last valid checkpoint is still that of {last}")
        return None
    monitor.message(f"checkpoint: {checkpoint}")
    return checkpoint
