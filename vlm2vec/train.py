"""The entry of a training run: parse, build, train, close.

deepspeed --module vlm2vec.train --deepspeed ds_configs/zero2.json --config launch/recipes/mini.yaml [flags]
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vlm2vec.training.modes import parse_modes

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    modes, words = parse_modes(sys.argv[1:])
    if not modes and not {"-h", "--help"} & {*words}:
        # Seconds on an idle machine, a minute on a busy one.
        print("starting: importing torch, transformers and DeepSpeed", flush=True)

import torch
import torch.distributed as dist

from vlm2vec.batches import BatchReader, ChunkSizes, PlanSource, TrainingBatches
from vlm2vec.contrastive import CachedStep
from vlm2vec.device import choose_accelerator, choose_kernels
from vlm2vec.errors import InputError, run_program
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.plan.model_flops import model_flops
from vlm2vec.ranks import close_ranks, initialize_ranks, on_every_rank
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.build import (
    build_encoder,
    build_step,
    chunk_sizes,
    encoder_inputs,
    learned_temperature,
    run_device,
    run_record,
    schedule,
    summary,
    versions,
    with_model_settings,
)
from vlm2vec.training.checkpoints.disk_space import check_disk
from vlm2vec.training.checkpoints.restore import start_of_run
from vlm2vec.training.checkpoints.resume import ResumePoint, agree_on_resume
from vlm2vec.training.checkpoints.writer import Checkpoints
from vlm2vec.training.data import compare_data, fingerprints, open_data
from vlm2vec.training.end import end_process
from vlm2vec.training.engine import build_engine
from vlm2vec.training.evaluation import best_checkpoint, build_evaluation
from vlm2vec.training.flags.config_file import config_text, run_header, write_config
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunArguments, RunSettings, parse_arguments
from vlm2vec.training.loop import train
from vlm2vec.training.preflight.compare_ranks import compare_ranks
from vlm2vec.training.preflight.out_of_memory import MemoryAdvice
from vlm2vec.training.preflight.output_folder import check_output_folder
from vlm2vec.training.preflight.rehearsal import PeakMeter, rehearse
from vlm2vec.training.stop import EXIT_STOPPED, StopRequest
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.first_pairs import first_pairs
from vlm2vec.training.watch.heartbeat import Heartbeat
from vlm2vec.training.watch.metrics import StepMeter
from vlm2vec.training.watch.monitor import Monitor, RunMonitor
from vlm2vec.training.watch.profiling import StepProfiles, summarise_communication
from vlm2vec.training.watch.run_watch import RunWatch


def main() -> int:
    """Runs one training from the command line, or prints its plan or its configuration."""
    modes, words = parse_modes(sys.argv[1:])
    if modes:
        if os.environ.get("RANK", "0") == "0":
            print_instead(modes, words)
        return 0
    try:
        arguments = parse_arguments(words)
    except InputError as error:
        error.is_reported = os.environ.get("LOCAL_RANK", "0") != "0"  # a node's ranks have the same command line
        raise
    try:
        device = initialize_ranks(arguments.training.collective_timeout)
        code = run(arguments, device)
    except BaseException as error:
        end_process(error)
    close_ranks()
    return code


def print_instead(modes: set[str], words: list[str]) -> None:
    """What a mode prints, without ranks and accelerator.

    Raises:
        InputError: Two modes, or what is refused in a run too.
    """
    if len(modes) > 1:
        raise InputError(f"--{' and --'.join(sorted(modes))} exclude each other: give one")
    if "dry_run" in modes:
        from vlm2vec.plan import run_plan

        run_plan.main(words)
        return
    arguments = parse_arguments(words)
    choose_accelerator()
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    settings = arguments.resolve(num_ranks, read_engine_file(Path(arguments.training.deepspeed)))
    if Path(arguments.model.model_name).is_dir():
        settings, _ = with_model_settings(settings)
    print(config_text(settings), end="")


def run(arguments: RunArguments, device: torch.device) -> int:
    """Builds everything and trains; all ranks call it.

    Returns:
        The exit code: 0, or `EXIT_STOPPED` if a signal stopped the run before its end.
    """
    training = arguments.training
    with Heartbeat(training.step_timeout, training.collective_timeout) as heartbeat:
        return run_watched(arguments, device, RunWatch(heartbeat, StepClock(device)))


def run_watched(arguments: RunArguments, device: torch.device, watch: RunWatch) -> int:
    """`run`, with somebody who sees that it goes on."""
    num_ranks, output_dir = dist.get_world_size(), Path(arguments.training.output_dir)
    watch.starting(f"comparing {num_ranks} rank(s), reading the index of {arguments.data.dataset_name}")
    compare_ranks(arguments.as_dict())
    settings = on_every_rank(lambda: arguments.resolve(num_ranks, read_engine_file(Path(arguments.training.deepspeed))))
    settings, changed_settings = on_every_rank(partial(with_model_settings, settings))
    encoder_settings = settings.encoder
    choose_kernels(encoder_settings.deterministic, is_float32=encoder_settings.precision.compute is torch.float32)
    shards, order = on_every_rank(lambda: open_data(settings.data, dist.get_rank()))
    compare_data(shards, order)
    settings = on_every_rank(partial(settings.with_length, order.steps_per_epoch))
    max_steps = settings.schedule.max_steps
    point = agree_on_resume(settings, fingerprints(shards, order))
    if point and point.record.step >= max_steps:
        return nothing_left(point)
    check_output_folder(output_dir)
    watch.starting(f"loading {encoder_settings.model_name}")
    encoder = on_every_rank(lambda: build_encoder(encoder_settings))
    # Before an engine changes how torch's layers run.
    flops = model_flops(encoder_settings, settings.watch.peak_tflops, encoder, device)
    is_elastic = point is not None and point.is_elastic
    watch.starting("building the engine")
    engine = build_engine(encoder, settings.engine, partial(schedule, settings.schedule), is_elastic)
    inputs = encoder_inputs(encoder_settings.precision, encoder)
    temperature = learned_temperature(settings.loss, settings.optimizer, device)
    cached_step = build_step(settings.loss, engine, encoder, inputs, temperature, watch)
    kept_before = point.kept_graphs(settings.flags) if point else None
    sizes = chunk_sizes(settings.chunking, engine, cached_step.model_call, inputs, kept_before)
    settings = settings.with_chunks(sizes)
    check_disk(engine, settings.checkpoints, (point.record.step if point else 0, max_steps))
    watch.starting("running the largest chunk once")
    memory = rehearsed(settings, cached_step, inputs, sizes, watch)
    meter = StepMeter(shards.subsets, device, watch.clock, flops)
    if point:
        watch.starting(f"loading {point.checkpoint}")
    # Last, as building may draw random numbers: dropout differs from rank to rank, and goes on where it was.
    first_step = start_of_run(point, settings, engine, temperature, meter)
    reader = BatchReader(shards, inputs, sizes, dist.get_rank())
    bad_samples = BadSamples(settings.data.max_bad_samples, point.record.bad_samples if point else ())
    source = PlanSource(
        order, reader, num_ranks, first_step, max_steps, settings.data.hard_negatives, bad_samples.places
    )
    num_workers = settings.data.num_workers
    batches = TrainingBatches(source, num_workers, pin_memory=device.type != "cpu")
    checkpoints = Checkpoints(
        output_dir,
        lambda folder: encoder.save_configuration(folder, with_base=True),
        lambda step: run_record(step, settings, engine, shards, order, temperature, bad_samples, sizes.keep_graphs),
        exclude_frozen=settings.checkpoints.excludes_frozen,
        total_limit=settings.checkpoints.limit,
        last_step=first_step,
        best=lambda: best_checkpoint(output_dir),
    )
    evaluation = build_evaluation(settings.evaluation, output_dir, inputs, cached_step.model_call, num_workers, device)
    with run_monitor(settings, first_step, run_device(encoder, engine)) as monitor, StopRequest() as stop, memory:
        monitor.message(summary(settings, encoder, shards, order, engine))
        for line in changed_settings:
            monitor.message(f"warning: {line}")
        if point:
            monitor.message(f"resumed from {point.checkpoint}: {first_step} of {max_steps} steps are done")
        if dist.get_rank() == 0:
            monitor.pairs(first_pairs(order.batch(first_step, source.damaged), shards))
        with StepProfiles(settings.watch, output_dir, engine, monitor.message) as profiles:
            parts = (engine, cached_step, batches, meter, monitor, checkpoints)
            is_done = train(*parts, settings, stop, watch, bad_samples, profiles, temperature, evaluation)
        summarise_communication(engine)
        if is_done:
            monitor.message(next_commands(output_dir, max_steps, settings.encoder.lora is not None))
    return 0 if is_done else EXIT_STOPPED


def next_commands(output_dir: Path, max_steps: int, is_adapter: bool) -> str:
    """What to do with a run that is done."""
    folder = shlex.quote(str(output_dir))
    exported = shlex.quote(f"{output_dir}-{'adapter' if is_adapter else 'model'}")
    return (
        f"done: all {max_steps} steps. Export: python -m vlm2vec.export {folder} {exported}\n"
        f"Curves: tensorboard --logdir {folder}"
    )


def rehearsed(
    settings: RunSettings, step: CachedStep, inputs: ItemEncoderInputs, sizes: ChunkSizes, watch: RunWatch
) -> MemoryAdvice:
    """Runs the largest chunk once; returns what explains running out of memory, there and later."""
    memory = MemoryAdvice(settings, sizes, watch)
    meter = PeakMeter.of_accelerator() if step.engine.device.type != "cpu" else None
    with memory:
        rehearse(step, inputs, sizes, watch, memory.measured, meter)
    return memory


def nothing_left(point: ResumePoint) -> int:
    """For a run that is done already, so that a loop of restarts ends."""
    if dist.get_rank() == 0:
        print(f"{point.checkpoint}: all {point.record.step} steps are done")
    return 0


@contextmanager
def run_monitor(settings: RunSettings, first_step: int, device: str) -> Iterator[Monitor]:
    """What takes the run's figures on the first rank; the others' are the same."""
    monitor = Monitor()
    if dist.get_rank() == 0:
        output_dir = settings.checkpoints.output_dir
        output_dir.mkdir(parents=True, exist_ok=True)
        write_config(output_dir, settings, run_header(settings, first_step, versions(), device))
        monitor = RunMonitor(output_dir, settings.schedule.max_steps, first_step)
    try:
        monitor.configuration({**settings.flags, "device": device})
        yield monitor
    finally:
        monitor.close()


if __name__ == "__main__":
    sys.exit(run_program(main))
