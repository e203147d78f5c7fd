"""Start of a run, from the beginning or from a checkpoint, and loading a checkpoint into the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.rank_state import restore_on_other_ranks, restore_rank, seed_rank
from vlm2vec.training.checkpoints.record import ENGINE_TAG, RECORD, RunRecord
from vlm2vec.training.checkpoints.state_files import safe_state_files
from vlm2vec.training.checkpoints.universal import universal_state
from vlm2vec.training.flags.run import POLICIES, RunSettings
from vlm2vec.training.model import TrainedModel
from vlm2vec.training.settings import CheckpointSettings, OptimizerSettings
from vlm2vec.training.watch.metrics import StepMeter
from vlm2vec.training.watch.run_watch import RunWatch


@dataclass(frozen=True)
class FromStart:
    """A run starts from the beginning, with the weights that it was built with.

    Attributes:
        step: Steps done.
        is_elastic: See `ResumePoint`.
        bad_samples: See `RunRecord`.
    """

    step: int = 0
    is_elastic: bool = False
    bad_samples: Sequence[Mapping[str, Any]] = ()

    def kept_graphs(self, flags: Mapping[str, Any]) -> int | None:
        """None: no earlier run has decided how many graphs to keep."""
        return None

    def restore(self, settings: RunSettings, model: TrainedModel, meter: StepMeter, watch: RunWatch) -> None:
        """Seeds this rank; nothing is loaded. All ranks call it."""
        seed_rank(settings.seed, self.step, dist.get_world_size(), dist.get_rank())

    def remarks(self, max_steps: int) -> list[str]:
        """Log lines about the start: none."""
        return []


@dataclass(frozen=True)
class ResumePoint:
    """A run resumes from a checkpoint.

    Attributes:
        checkpoint: Folder of the checkpoint.
        record: Record of the checkpoint.
        is_elastic: Whether a different number of ranks or a different ZeRO stage wrote it, so that its state must be
            resharded.
    """

    checkpoint: Path
    record: RunRecord
    is_elastic: bool

    @property
    def step(self) -> int:
        """Steps done."""
        return self.record.step

    @property
    def bad_samples(self) -> Sequence[Mapping[str, Any]]:
        """See `RunRecord`."""
        return self.record.bad_samples

    def kept_graphs(self, flags: Mapping[str, Any]) -> int | None:
        """Number of graphs that a step kept, if ranks, ZeRO stage and chunks are unchanged."""
        before = self.record.arguments
        is_same = all(before.get(name) == value for name, value in flags.items() if POLICIES[name].decides_chunks)
        return self.record.keep_graphs if is_same and not self.is_elastic else None

    def restore(self, settings: RunSettings, model: TrainedModel, meter: StepMeter, watch: RunWatch) -> None:
        """Loads weights, moments, schedule, temperature, random states and the meter's sums. All ranks call it.

        Raises:
            InputError: The checkpoint's files cannot be read.
        """
        rank, num_ranks, record = dist.get_rank(), dist.get_world_size(), self.record
        before = f"resharding and loading it from {record.num_ranks} ranks and ZeRO-{record.zero_stage}: "
        watch.starting(f"{before if self.is_elastic else 'loading '}{self.checkpoint}")
        seed_rank(settings.seed, self.step, num_ranks, rank)
        restore_engine(self, settings.checkpoints, model.engine)
        set_hyperparameters(model.engine, settings.optimizer)
        if model.temperature is not None and record.temperature is not None:
            try:
                model.temperature.load_state_dict(record.temperature)
            except KeyError as error:
                raise InputError(f"{self.checkpoint / RECORD}: temperature has no {error}") from error
        if record.num_ranks == num_ranks:
            restore_rank(self.checkpoint, rank, model.engine.device, meter)
        else:
            restore_on_other_ranks(self.checkpoint, record.num_ranks, rank, meter)

    def remarks(self, max_steps: int) -> list[str]:
        """Log lines about the start, for a run of `max_steps` steps."""
        if self.step >= max_steps:
            return [f"{self.checkpoint}: all {self.step} steps are done"]
        return [f"resumed from {self.checkpoint}: {self.step} of {max_steps} steps are done"]


StartPoint = FromStart | ResumePoint


def restore_engine(point: ResumePoint, checkpoints: CheckpointSettings, engine: Any) -> None:
    """Loads the engine's part of a checkpoint, also from a different number of ranks or ZeRO stage.

    Raises:
        InputError: It cannot be read.
    """
    if point.is_elastic:
        stage = int(engine.zero_optimization_stage())
        with universal_state(point.checkpoint, checkpoints.output_dir, stage) as folder:
            load_engine(folder, engine, excludes_frozen=True)
        unshare_steps(engine)
    else:
        load_engine(point.checkpoint, engine, excludes_frozen=checkpoints.excludes_frozen)


def load_engine(folder: Path, engine: Any, excludes_frozen: bool) -> None:
    """Loads the engine's state from a folder that holds it under the tag `ENGINE_TAG`.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with safe_state_files():
            path, _ = engine.load_checkpoint(
                str(folder),
                tag=ENGINE_TAG,
                # Then the checkpoint lacks frozen weights; the run has loaded them with the base model.
                load_module_strict=not excludes_frozen,
            )
    except Exception as error:  # missing, damaged or foreign files can raise any type
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / ENGINE_TAG}: cannot be read as ZeRO state ({reason})") from error
    if path is None:
        raise InputError(f"{folder / ENGINE_TAG}: holds no ZeRO state")


def unshare_steps(engine: Any) -> None:
    """Gives every parameter group's state a separate step counter.

    DeepSpeed 0.19.8 shares one tensor among all ZeRO-3 sub-groups, and torch's AdamW counts in place: with n
    sub-groups every step would count n times.
    """
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def set_hyperparameters(engine: Any, settings: OptimizerSettings) -> None:
    """Sets the flags' values again after a load, which overwrites them: `--allow_changed` may have changed them."""
    engine.optimizer.clip_grad = settings.max_grad_norm
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay
        group["betas"] = settings.betas
        group["eps"] = settings.epsilon
        group["initial_lr"] = settings.learning_rate
    scheduler = engine.lr_scheduler
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.base_lrs = [settings.learning_rate for _ in scheduler.base_lrs]
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
