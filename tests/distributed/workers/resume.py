"""One rank of several training runs, one after the other, some of them interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec import train
from vlm2vec.batches import TrainingBatch, TrainingBatches
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.checkpoints.writer import Checkpoints
from vlm2vec.training.flags.run import RunArguments, parse_arguments
from vlm2vec.training.stop import EXIT_STOPPED

SIGNALLED_STEP, UNWRITABLE_STEP = 2, 2
_MANY_BYTES, _FEW_BYTES = resource.RLIM_INFINITY, 20_000


class SignallingBatches(TrainingBatches):
    """The last rank gets SLURM's warning before a step; the other one learns of it from its peer."""

    def __iter__(self) -> Iterator[TrainingBatch]:
        for batch in super().__iter__():
            if batch.header.step == SIGNALLED_STEP and dist.get_rank() == dist.get_world_size() - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch


class FullDisk(Checkpoints):
    """The last rank cannot write more than a few bytes to a file of one of the checkpoints."""

    def save(self, engine: Any, step: int, rank_state: Mapping[str, Any] | None = None) -> Path:
        is_full = step == UNWRITABLE_STEP and dist.get_rank() == dist.get_world_size() - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FEW_BYTES if is_full else _MANY_BYTES, _MANY_BYTES))
        try:
            return super().save(engine, step, rank_state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_MANY_BYTES, _MANY_BYTES))


def plain(arguments: RunArguments, device: Any) -> None:
    assert train.run(arguments, device) == 0


def signalled(arguments: RunArguments, device: Any) -> None:
    assert train.run(arguments, device, replace(train.PARTS, batches=SignallingBatches)) == EXIT_STOPPED


def full_disk(arguments: RunArguments, device: Any) -> None:
    assert train.run(arguments, device, replace(train.PARTS, checkpoints=FullDisk)) == 0


RUNS: dict[str, Callable[[RunArguments, Any], None]] = {
    "plain": plain,
    "signalled": signalled,
    "full disk": full_disk,
}


def main(jobs: Path) -> None:
    """Does what a JSON file says, in its order: pairs of a name in RUNS and the flags of a run."""
    device = initialize_ranks(COLLECTIVE_SECONDS)
    for name, flags in json.loads(jobs.read_text()):
        print(name, *flags, flush=True)
        RUNS[name](parse_arguments(flags), device)
    close_ranks()
