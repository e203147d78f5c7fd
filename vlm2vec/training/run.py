"""Builds a run's parts in order, from what its ranks have agreed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vlm2vec.batches import BatchReader, ChunkSizes, PlanSource, TrainingBatches
from vlm2vec.batches.groups import RowGroups
from vlm2vec.contrastive import CachedStep
from vlm2vec.encoder import VLM2Vec
from vlm2vec.ranks import on_every_rank
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.checkpoints.disk_space import check_disk
from vlm2vec.training.checkpoints.record import RunRecord, versions
from vlm2vec.training.checkpoints.writer import Checkpoints
from vlm2vec.training.data import largest_of_several
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.evaluation import NoEvaluation, RunEvaluation, best_checkpoint, build_evaluation
from vlm2vec.training.flags.config_file import run_header, write_config
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.model import TrainedModel
from vlm2vec.training.preflight.graph_memory import chunk_sizes
from vlm2vec.training.preflight.out_of_memory import MemoryAdvice
from vlm2vec.training.preflight.output_folder import check_output_folder
from vlm2vec.training.preflight.rehearsal import PeakMeter, rehearse
from vlm2vec.training.settings import EncoderSettings
from vlm2vec.training.start import Start
from vlm2vec.training.stop import StopRequest
from vlm2vec.training.watch.first_pairs import first_pairs
from vlm2vec.training.watch.heartbeat import Heartbeat
from vlm2vec.training.watch.metrics import StepMeter, optional_metrics
from vlm2vec.training.watch.mfu import ModelFlops
from vlm2vec.training.watch.monitor import Monitor, open_monitor
from vlm2vec.training.watch.profiling import StepProfiles
from vlm2vec.training.watch.run_watch import RunWatch
from vlm2vec.training.watch.skipped_steps import SkippedSteps
from vlm2vec.training.watch.summary import run_card


@dataclass(frozen=True)
class Parts:
    """Classes and functions that make a run's replaceable parts; tests and trials put others in their place.

    Attributes:
        model_flops: Counts the FLOPs behind MFU; returns None if the device's peak is unknown.
        heartbeat: Ends a run that is stuck.
        source: Plans the steps.
        batches: Loads the steps.
        checkpoints: Writes checkpoints.
        step: Runs a step's chunks.
        rehearse: Runs the largest chunk once.
    """

    model_flops: Callable[[EncoderSettings, float | None, VLM2Vec, torch.device], ModelFlops | None]
    heartbeat: type[Heartbeat] = Heartbeat
    source: type[PlanSource] = PlanSource
    batches: type[TrainingBatches] = TrainingBatches
    checkpoints: type[Checkpoints] = Checkpoints
    step: type[CachedStep] = CachedStep
    rehearse: Callable[..., None] = rehearse


@dataclass(frozen=True)
class Run:
    """All parts of a training run; `vlm2vec.training.loop.train` runs it.

    Attributes:
        start: What the ranks agreed on.
        settings: Resolved settings, including what was measured on the device.
        watch: Tracks the run's current place and where time is spent.
        model: The trained model.
        memory: Explains running out of memory.
        meter: Collects the metrics of steps.
        bad_samples: Unreadable samples so far.
        batches: The remaining steps.
        checkpoints: Writes the run's state.
        evaluation: Evaluates during training.
        monitor: Receives what the run reports; it discards everything except on the first rank.
        stop: Tracks signals that ask the run to end.
        profiles: Profiles chosen steps.
        skipped_steps: Counts updates skipped because the gradient was not finite.
    """

    start: Start
    settings: RunSettings
    watch: RunWatch
    model: TrainedModel
    memory: MemoryAdvice
    meter: StepMeter
    bad_samples: BadSamples
    batches: TrainingBatches
    checkpoints: Checkpoints
    evaluation: RunEvaluation | NoEvaluation
    monitor: Monitor
    stop: StopRequest
    profiles: StepProfiles
    skipped_steps: SkippedSteps

    @classmethod
    def build(cls, start: Start, watch: RunWatch, parts: Parts) -> Run:
        """Builds all parts; all ranks call it.

        The order matters: fast checks come first, and a checkpoint's state is restored after the last part that draws
        random numbers.

        Raises:
            InputError: A model, flag, disk or dataset cannot be used, or a chunk does not fit into memory.
        """
        settings, device = start.settings, start.device
        output_dir, num_workers = settings.checkpoints.output_dir, settings.data.num_workers
        check_output_folder(output_dir)
        model, meter = build_model(start, watch, parts)
        kept_before = start.point.kept_graphs(settings.flags)
        sizes = chunk_sizes(settings.chunking, model.step, model.inputs, kept_before)
        settings = settings.with_chunks(sizes)
        check_disk(model.engine, settings.checkpoints, (start.point.step, settings.schedule.max_steps))
        memory = rehearsed(settings, model, sizes, watch, parts)
        # After the parts that may draw random numbers, because it restores every rank's random state for dropout.
        start.point.restore(settings, model, meter, watch)
        bad_samples = BadSamples(settings.data.max_bad_samples, start.point.bad_samples)
        batches = build_batches(start, model, sizes, bad_samples, parts)
        checkpoints = build_checkpoints(start, settings, model, bad_samples, parts)
        if settings.evaluation is not None:
            watch.starting(f"reading {settings.evaluation.dataset_name}, which the run is scored on")
        evaluation = build_evaluation(
            settings.evaluation, output_dir, model.inputs, model.step.model_call, num_workers, device
        )
        watch.starting("opening the log and trackers")
        monitor = build_monitor(start, settings, str(model.device))
        return cls(
            start=start,
            settings=settings,
            watch=watch,
            model=model,
            memory=memory,
            meter=meter,
            bad_samples=bad_samples,
            batches=batches,
            checkpoints=checkpoints,
            evaluation=evaluation,
            monitor=monitor,
            stop=StopRequest(),
            profiles=StepProfiles(settings.watch, output_dir, model.engine, monitor.message),
            skipped_steps=SkippedSteps(model.engine),
        )

    def announce(self) -> None:
        """Reports the configuration, warnings and the first pairs."""
        start, monitor = self.start, self.monitor
        monitor.begin(run_card(self.settings, self.model, start.data))
        for line in start.warnings:
            monitor.message(f"warning: {line}")
        for line in start.point.remarks(self.settings.schedule.max_steps):
            monitor.message(line)
        if dist.get_rank() == 0:
            batch = start.data.order.batch(start.point.step, self.bad_samples.places)
            monitor.pairs(first_pairs(batch, start.data.shards))


def build_model(start: Start, watch: RunWatch, parts: Parts) -> tuple[TrainedModel, StepMeter]:
    """Builds the model to train and the meter of its steps.

    Raises:
        InputError: The model cannot be used, or a flag does not fit it.
    """
    settings = start.settings
    watch.starting(f"loading {settings.encoder.model_name}")
    encoder = on_every_rank(lambda: build_encoder(settings.encoder))
    # Before an engine exists, which changes how torch's layers run.
    flops = parts.model_flops(settings.encoder, settings.watch.peak_tflops, encoder, start.device)
    watch.starting("building the engine")
    groups = temperature_groups(start)
    names = () if groups is None else groups.names
    model = TrainedModel.build(settings, encoder, start.point.is_elastic, watch, parts.step, names)
    model.inputs.expect(largest_of_several(start.data.shards, model.inputs, settings.data.hard_negatives))
    optional = optional_metrics(settings.loss, settings.data.mined)
    return model, StepMeter(start.data.shards.subsets, start.device, watch.clock, flops, optional)


def temperature_groups(start: Start) -> RowGroups | None:
    """Groups of rows that learn one temperature each; None if all rows share one."""
    grouping = start.settings.loss.temperature_by
    return None if grouping is None else RowGroups.of(start.data.shards.subsets, grouping)


def rehearsed(
    settings: RunSettings, model: TrainedModel, sizes: ChunkSizes, watch: RunWatch, parts: Parts
) -> MemoryAdvice:
    """Runs the largest chunk once; returns the context that explains running out of memory, here and later.

    Raises:
        InputError: The chunk does not fit.
    """
    watch.starting("running the largest chunk once")
    memory = MemoryAdvice(settings, sizes, watch)
    meter = PeakMeter.of_accelerator() if model.engine.device.type != "cpu" else None
    with memory:
        parts.rehearse(model.step, model.inputs, sizes, watch, memory.measured, meter)
    return memory


def build_batches(
    start: Start, model: TrainedModel, sizes: ChunkSizes, bad_samples: BadSamples, parts: Parts
) -> TrainingBatches:
    """This rank's part of the remaining steps."""
    settings = start.settings
    source = parts.source(
        order=start.data.order,
        reader=BatchReader(start.data.shards, model.inputs, sizes, dist.get_rank(), temperature_groups(start)),
        num_ranks=dist.get_world_size(),
        first_step=start.point.step,
        last_step=settings.schedule.max_steps,
        hard_negatives=settings.data.hard_negatives,
        mined=start.data.mined,
        damaged=bad_samples.places,
    )
    return parts.batches(source, settings.data.num_workers, pin_memory=start.device.type != "cpu")


def build_checkpoints(
    start: Start, settings: RunSettings, model: TrainedModel, bad_samples: BadSamples, parts: Parts
) -> Checkpoints:
    """Builds the writer of the run's checkpoints, each with a record of the run."""

    def record(step: int) -> RunRecord:
        return RunRecord(
            step=step,
            num_ranks=dist.get_world_size(),
            zero_stage=int(model.engine.zero_optimization_stage()),
            arguments=settings.flags,
            versions=versions(),
            data=start.data.fingerprints,
            temperature=model.temperature.state_dict() if model.temperature is not None else None,
            bad_samples=bad_samples.record,
            keep_graphs=settings.chunking.keep_graphs,
        )

    output_dir = settings.checkpoints.output_dir
    return parts.checkpoints(
        output_dir,
        lambda folder: model.encoder.save_configuration(folder, with_base=True),
        record,
        exclude_frozen=settings.checkpoints.excludes_frozen,
        total_limit=settings.checkpoints.limit,
        last_step=start.point.step,
        best=lambda: best_checkpoint(output_dir),
    )


def build_monitor(start: Start, settings: RunSettings, device: str) -> Monitor:
    """Builds the monitor on the first rank; other ranks get one that discards everything.

    Also writes the configuration into the run's folder, in place of an earlier start's.
    """
    if dist.get_rank() != 0:
        return Monitor()
    output_dir, first_step = settings.checkpoints.output_dir, start.point.step
    output_dir.mkdir(parents=True, exist_ok=True)
    write_config(output_dir, settings, run_header(settings, first_step, versions(), device))
    return open_monitor(settings.watch, output_dir, settings.schedule.max_steps, first_step)
