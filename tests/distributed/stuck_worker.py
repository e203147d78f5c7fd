"""One rank of a run in which some things take long and then one rank does not go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vlm2vec import train
from vlm2vec.batches import TrainingBatch, TrainingBatches
from vlm2vec.training.arguments import parse_arguments
from vlm2vec.training.checkpoint import Checkpoints
from vlm2vec.training.engine import close_ranks, initialize_ranks
from vlm2vec.training.heartbeat import Heartbeat

STEP_TIMEOUT = 6
SECONDS_OF_A_PAUSE = STEP_TIMEOUT + 3
SLOW_DATA_STEP = 1
STUCK_STEP, STUCK_PLACE = 2, "pass 2, chunk 2 of"
STUCK_AT = "stuck_at"
# What the rank does to itself; None: nothing, in a run whose data and checkpoint take longer than the time limit.
SIGNALS = {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL, "slow": None}


class StuckHeartbeat(Heartbeat):
    """One rank ends or stops itself in the middle of a step."""

    rank: int
    signal: signal.Signals | None
    folder: Path

    def mark(self, place: str, is_pause: bool = False) -> None:
        super().mark(place, is_pause)
        is_here = self._steps_begun == STUCK_STEP and place.startswith(STUCK_PLACE) and not is_pause
        if is_here and self.signal and dist.get_rank() == self.rank:
            time.sleep(3)  # until the others have heard where it is
            (self.folder / STUCK_AT).write_text(str(time.time()))
            os.kill(os.getpid(), self.signal)


class SlowBatches(TrainingBatches):
    """One rank waits for its data for longer than a step may take."""

    def __iter__(self) -> Iterator[TrainingBatch]:
        for batch in super().__iter__():
            if batch.header.step == SLOW_DATA_STEP and dist.get_rank() == 1:
                time.sleep(SECONDS_OF_A_PAUSE)
            yield batch


class SlowCheckpoints(Checkpoints):
    """The first rank writes for longer than a step may take."""

    def save(self, engine: Any, step: int, rank_state: Mapping[str, Any] | None = None) -> Path:
        if dist.get_rank() == 0:
            time.sleep(SECONDS_OF_A_PAUSE)
        return super().save(engine, step, rank_state)


def main(what: str, rank: int, flags: list[str], folder: Path) -> None:
    """Trains; `rank` is the one that is stuck."""
    StuckHeartbeat.rank, StuckHeartbeat.signal, StuckHeartbeat.folder = rank, SIGNALS[what], folder
    train.Heartbeat = StuckHeartbeat  # type: ignore[misc]
    if what == "slow":
        train.TrainingBatches = SlowBatches  # type: ignore[misc]
        train.Checkpoints = SlowCheckpoints  # type: ignore[misc]
    device = initialize_ranks(120)
    code = train.run(parse_arguments([*flags, "--step_timeout", str(STEP_TIMEOUT)]), device)
    close_ranks()
    sys.exit(code)
