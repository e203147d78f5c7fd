"""The training loop: runs steps, reports metrics, evaluates, writes checkpoints."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from vlm2vec.batches import StepHeader
from vlm2vec.contrastive import DamagedItemsError, StepStoppedError
from vlm2vec.contrastive.watch import Place
from vlm2vec.dora import kept_norms
from vlm2vec.training.checkpoints.rank_state import rank_state
from vlm2vec.training.checkpoints.writer import CheckpointError
from vlm2vec.training.run import Run
from vlm2vec.training.watch.parts import RunPart
from vlm2vec.training.watch.profiling import summarise_communication
from vlm2vec.training.watch.summary import next_command

# Consecutive failed checkpoints that end a run: later work would most likely be lost too.
MOST_FAILED_SAVES = 3
_OPTIMIZER_STEP = Place(RunPart.OPTIMIZER, "optimizer step")


def train(run: Run) -> bool:
    """Runs all remaining steps, writes metrics and checkpoints; all ranks call it.

    Returns:
        Whether all steps are done; False if a rank was asked to stop. Then the steps done so far are in a checkpoint.

    Raises:
        InputError: The shards cannot be reached, more samples are unreadable than allowed, the gradients of several
            steps in a row are not finite, or memory ran out.
        NonFiniteLossError: The loss or a representation of a step is not finite; that step updates nothing.
        CheckpointError: The last checkpoint could not be written, or several in a row.
    """
    settings = run.settings
    with closing(run.monitor), run.stop, run.memory:
        run.announce()
        with run.profiles:
            is_done = run_steps(run)
        run.batches.close()
        summarise_communication(run.model.engine)
        if is_done:
            is_adapter = settings.encoder.lora is not None
            run.monitor.done(next_command(settings.checkpoints.output_dir, settings.schedule.max_steps, is_adapter))
    return is_done


def run_steps(run: Run) -> bool:
    """Runs the loop, see `train`."""
    settings, engine, every = run.settings, run.model.engine, run.settings.checkpoints.every
    for batch in run.watch.steps(run.batches):
        header, done = batch.header, batch.header.step + 1
        run.profiles.before(done)
        try:
            with kept_norms(engine):
                output = run.model.step.cache_step(batch.chunks, header.layout, run.stop.requested)
        except StepStoppedError:
            stopped(run, header.step)
            return False
        except DamagedItemsError:
            run.bad_samples.replace(run.batches, run.monitor, header.step)
            continue
        with run.watch.part(RunPart.OPTIMIZER, _OPTIMIZER_STEP):
            learning_rate = update(run, done)
        with run.watch.pause(RunPart.PROFILE):
            run.profiles.after(done)
        run.meter.add(header, output)
        run.monitor.advance()
        is_last = done == settings.schedule.max_steps
        if is_last or done % settings.watch.logging_steps == 0:
            report(run, header, learning_rate)
        with run.watch.pause(RunPart.EVALUATION):
            is_best = run.evaluation.after_step(engine, done, is_last, run.monitor)
        if is_last or is_best or (every and done % every == 0):
            with run.watch.pause(RunPart.CHECKPOINT):
                checkpoint = save(run, done, run_goes_on=not is_last)
                if is_best and checkpoint is not None:
                    run.evaluation.keep(checkpoint)
    return True


def update(run: Run, done: int) -> float:
    """Updates the weights, and a learned temperature on the same schedule; returns the learning rate of this update.

    Raises:
        InputError: Too many updates in a row were skipped.
    """
    engine, temperature, rate = run.model.engine, run.model.temperature, run.settings.loss.temperature_learning_rate
    learning_rate = float(engine.get_lr()[0])
    engine.step()
    was_skipped = run.skipped_steps.after_update(done, run.monitor)
    if temperature is not None and was_skipped:
        temperature.drop_gradient()
    elif temperature is not None and rate is not None:
        temperature.step(rate * learning_rate / run.settings.optimizer.learning_rate)
    return learning_rate


def report(run: Run, header: StepHeader, learning_rate: float) -> None:
    """Writes the metrics of the steps since the last report; a collective."""
    temperature = run.model.temperature
    figures = run.meter.report()
    figures.values["learning_rate"] = learning_rate
    figures.values["gradient_norm"] = float(run.model.engine.get_global_grad_norm())
    figures.values["epoch"] = float(header.epoch)
    figures.values["bad_samples"] = float(len(run.bad_samples))
    figures.values["skipped_steps"] = float(run.skipped_steps.total)
    fixed = run.settings.loss.temperature
    figures.values["temperature"] = fixed if temperature is None else float(temperature.value.mean())
    if temperature is not None and temperature.groups:
        of_groups = zip(temperature.groups, temperature.value.tolist(), strict=True)
        figures.values.update({f"temperature/{name}": value for name, value in of_groups})
    run.monitor.figures(header.step + 1, figures)


def stopped(run: Run, done: int) -> None:
    """A rank was asked to stop: saves the steps done, unless they are saved already, and reports how to resume.

    Raises:
        CheckpointError: The checkpoint could not be written.
    """
    if run.checkpoints.last_step != done:
        with run.watch.pause(RunPart.CHECKPOINT):
            save(run, done, run_goes_on=False)
    name = run.stop.name(run.model.engine.device)
    run.monitor.message(f"stopped at step {done} by {name}; restart with --resume auto to resume")


def save(run: Run, done: int, run_goes_on: bool) -> Path | None:
    """Writes a checkpoint. A failure ends the run only at its last checkpoint, or after several failures in a row.

    Returns:
        The checkpoint's folder; None if it could not be written and the run continues.

    Raises:
        CheckpointError: It could not be written, and it is the last one or failure `MOST_FAILED_SAVES` in a row.
    """
    engine, checkpoints = run.model.engine, run.checkpoints
    try:
        checkpoint = checkpoints.save(engine, done, rank_state(engine.device, run.meter))
    except CheckpointError as error:
        if not run_goes_on:
            raise
        last = f"step {checkpoints.last_step}" if checkpoints.last_step else "none"
        if checkpoints.failed_in_a_row >= MOST_FAILED_SAVES:
            raise CheckpointError(
                f"{error}; {checkpoints.failed_in_a_row} checkpoints in a row have failed, so the run ends (last valid "
                f"checkpoint: {last}). Make --output_dir writable again, then restart with --resume auto"
            ) from error
        run.monitor.message(f"warning: {error}; the run continues (last valid checkpoint: {last})")
        return None
    run.monitor.message(f"checkpoint: {checkpoint}")
    return checkpoint
