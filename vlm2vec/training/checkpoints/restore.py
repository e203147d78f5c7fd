"""Putting a checkpoint back into a run's engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.contrastive import LearnedTemperature
from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.rank_state import restore_on_other_ranks, restore_rank, seed_rank
from vlm2vec.training.checkpoints.record import ENGINE_TAG, RECORD
from vlm2vec.training.checkpoints.resume import ResumePoint
from vlm2vec.training.checkpoints.state_files import safe_state_files
from vlm2vec.training.checkpoints.universal import universal_state
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.settings import CheckpointSettings, OptimizerSettings
from vlm2vec.training.watch.metrics import StepMeter


def start_of_run(
    point: ResumePoint | None,
    settings: RunSettings,
    engine: Any,
    temperature: LearnedTemperature | None,
    meter: StepMeter,
) -> int:
    """Seeds a new run's ranks, or continues a checkpoint; returns the steps done. All ranks call it.

    Raises:
        InputError: The checkpoint's files cannot be read.
    """
    first_step = point.record.step if point else 0
    seed_rank(settings.seed, first_step, dist.get_world_size(), dist.get_rank())
    if point:
        restore(point, settings.checkpoints, settings.optimizer, engine, temperature, meter)
    return first_step


def restore(
    point: ResumePoint,
    checkpoints: CheckpointSettings,
    optimizer: OptimizerSettings,
    engine: Any,
    temperature: LearnedTemperature | None,
    meter: StepMeter,
) -> None:
    """Continues a checkpoint: weights, moments, schedule, temperature, random states, sums. All ranks call it.

    Raises:
        InputError: The checkpoint's files cannot be read.
    """
    if point.is_elastic:
        stage = int(engine.zero_optimization_stage())
        with universal_state(point.checkpoint, checkpoints.output_dir, stage) as folder:
            load_engine(folder, engine, excludes_frozen=True)
        unshare_steps(engine)
    else:
        load_engine(point.checkpoint, engine, excludes_frozen=checkpoints.excludes_frozen)
    set_hyperparameters(engine, optimizer)
    record = point.record
    if temperature is not None and record.temperature is not None:
        try:
            temperature.load_state_dict(record.temperature)
        except KeyError as error:
            raise InputError(f"{point.checkpoint / RECORD}: temperature has no {error}") from error
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if record.num_ranks == num_ranks:
        restore_rank(point.checkpoint, rank, engine.device, meter)
    else:
        restore_on_other_ranks(point.checkpoint, record.num_ranks, rank, meter)


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
                # Weights that are not trained are not in the checkpoint then; the run has loaded the base model.
                load_module_strict=not excludes_frozen,
            )
    except Exception as error:  # missing, torn or foreign files surface as any type
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / ENGINE_TAG}: cannot be read as ZeRO state ({reason})") from error
    if path is None:
        raise InputError(f"{folder / ENGINE_TAG}: holds no ZeRO state")


def unshare_steps(engine: Any) -> None:
    """Gives every parameter group's state its own count of steps.

    DeepSpeed 0.19.8 puts one tensor into all ZeRO-3 sub-groups, and torch's AdamW counts in place: with n sub-groups
    every step would count as n.
    """
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def set_hyperparameters(engine: Any, settings: OptimizerSettings) -> None:
    """What the flags say, after a load: a checkpoint brings its own values, and changed ones may have been allowed."""
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
