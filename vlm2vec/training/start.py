"""Agreement of all ranks before anything is built: settings, data, and where the run starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from vlm2vec.device import choose_kernels
from vlm2vec.messages.words import counted
from vlm2vec.ranks import on_every_rank
from vlm2vec.training.checkpoints.restore import StartPoint
from vlm2vec.training.checkpoints.resume import agree_on_resume
from vlm2vec.training.data import RunData, compare_data, open_data
from vlm2vec.training.encoder import with_model_settings
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunArguments, RunSettings
from vlm2vec.training.preflight.compare_ranks import compare_ranks
from vlm2vec.training.watch.run_watch import RunWatch


@dataclass(frozen=True)
class Start:
    """What a run is built from; identical on every rank except for the device.

    Attributes:
        device: This rank's device.
        settings: Resolved settings, except for what is measured on the device.
        data: The samples and their order.
        point: The beginning, or a checkpoint.
        warnings: One line per flag that differs from the model's saved setting.
    """

    device: torch.device
    settings: RunSettings
    data: RunData
    point: StartPoint
    warnings: Sequence[str]

    @property
    def is_over(self) -> bool:
        """Whether all steps are done already."""
        return self.point.step >= self.settings.schedule.max_steps


def agree_on_start(arguments: RunArguments, device: torch.device, watch: RunWatch) -> Start:
    """Resolves the flags and opens the data; all ranks call it, and are compared before anything else.

    Raises:
        InputError: On one rank: ranks differ, or flags, an engine file, a model, data or a checkpoint cannot be used.
        SystemExit: On the other ranks then.
    """
    num_ranks = dist.get_world_size()
    watch.starting(f"comparing {counted(num_ranks, 'rank')}, reading the index of {arguments.data.dataset_name}")
    compare_ranks(arguments.as_dict())
    settings = on_every_rank(lambda: arguments.resolve(num_ranks, read_engine_file(Path(arguments.training.deepspeed))))
    settings, warnings = on_every_rank(partial(with_model_settings, settings))
    encoder = settings.encoder
    choose_kernels(encoder.deterministic, is_float32=encoder.precision.compute is torch.float32)
    data = on_every_rank(partial(open_data, settings.data, dist.get_rank()))
    compare_data(data.shards, data.order, data.sidecar)
    settings = on_every_rank(partial(settings.with_length, data.order.steps_per_epoch))
    return Start(device, settings, data, agree_on_resume(settings, data.fingerprints), warnings)


def settings_without_ranks(arguments: RunArguments, num_ranks: int) -> RunSettings:
    """Resolved settings, as far as they are known before the ranks meet and the data are open.

    Raises:
        InputError: Flags or the engine file cannot be used, or the model's settings are damaged.
    """
    settings = arguments.resolve(num_ranks, read_engine_file(Path(arguments.training.deepspeed)))
    return with_model_settings(settings)[0] if Path(settings.encoder.model_name).is_dir() else settings
