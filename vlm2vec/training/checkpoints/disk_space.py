"""Checks before the first step that a run's checkpoints fit on the disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.messages.words import counted
from vlm2vec.ranks import on_first_rank
from vlm2vec.training.checkpoints.record import checkpoints_of
from vlm2vec.training.settings import CheckpointSettings

# AdamW's two moments and the master weights, float32 each.
_STATE_BYTES = 3 * 4
# The estimate's relative error is smaller (tests/distributed/test_preflight.py); random states, tokenizer and records
# are not counted.
_UNCERTAIN = 0.1


def checkpoint_bytes(engine: Any, exclude_frozen: bool) -> int:
    """Estimated size of an engine's checkpoint in bytes.

    Args:
        engine: The DeepSpeed engine.
        exclude_frozen: Whether frozen weights are left out.
    """
    stage = int(engine.zero_optimization_stage())
    total = 0
    for parameter in engine.module.parameters():
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        if parameter.requires_grad:
            # ZeRO-3 saves trained weights as master weights only.
            total += count * (_STATE_BYTES + (parameter.element_size() if stage < 3 else 0))
        elif not exclude_frozen:
            total += count * parameter.element_size()
    return total


def checkpoints_to_come(settings: CheckpointSettings, steps: tuple[int, int], there: int) -> tuple[int, int]:
    """How many more checkpoints must fit for the run to work, and how many it will write at most.

    While a checkpoint is written, there is one more than are kept. If all are kept, two must fit: a user may delete old
    ones during the run.

    Args:
        settings: How often checkpoints are written and how many are kept.
        steps: Steps done, and steps at the end.
        there: Checkpoints that the folder already has.
    """
    first, last = steps
    every = settings.every or last
    to_write = math.ceil(last / every) - first // every
    limit = settings.limit
    if limit is None:
        return min(to_write, 2), to_write
    at_once = min(to_write, max(1, limit + 1 + settings.keeps_best - there))
    return at_once, at_once


def check_disk(
    engine: Any,
    settings: CheckpointSettings,
    steps: tuple[int, int],
    message: Callable[[str], None] = print,
) -> None:
    """Checks on the first rank that the run's checkpoints fit on its disk; all ranks call it.

    Args:
        engine: The DeepSpeed engine.
        settings: See `checkpoints_to_come`.
        steps: See `checkpoints_to_come`.
        message: Receives a warning if the lack of space is within the estimate's error, or comes later in the run.

    Raises:
        InputError: On the first rank: they do not fit.
        SystemExit: On the other ranks.
    """

    output_dir = settings.output_dir

    def check() -> None:
        size = checkpoint_bytes(engine, settings.excludes_frozen)
        there = sum(1 for _ in checkpoints_of(output_dir))
        must, most = checkpoints_to_come(settings, steps, there)
        place = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        text = (
            f"--output_dir {output_dir}: {{}} of about {_size(size)} do not fit into the {_size(free)} "
            "of free space; make room, lower --save_total_limit, or choose a different folder"
        )
        if must * size * (1 - _UNCERTAIN) > free:
            raise InputError(text.format(counted(must, "checkpoint")))
        if most * size > free:
            message("warning: " + text.format(counted(most, "checkpoint")))

    on_first_rank(check)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
