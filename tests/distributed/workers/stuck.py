"""One rank of a run in which some operations are slow and then one rank gets stuck."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trials.rig.patience import HANG_SECONDS
from vlm2vec import train
from vlm2vec.batches import TrainingBatch, TrainingBatches
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.checkpoints.writer import Checkpoints
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.watch.heartbeat import Heartbeat
from vlm2vec.training.watch.stuck import Mark, Word

# Of the run whose pauses take longer than a step may.
STEP_TIMEOUT = 10
SECONDS_OF_A_PAUSE = STEP_TIMEOUT + 3
# Of a run with a stuck rank, but at the place where it is stuck: whatever is slow, nothing else is given up.
LONG_TIMEOUT, STUCK_TIMEOUT = HANG_SECONDS, 6
SLOW_DATA_STEP = 1
STUCK_STEP, STUCK_PLACE = 2, "pass 2, chunk 2 of"
HEARD, STUCK_AT = "heard", "stuck_at"
# What the rank does to itself; None: nothing, in a run whose data and checkpoint take longer than the time limit.
SIGNALS = {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL, "slow": None}


class StuckHeartbeat(Heartbeat):
    """One rank ends or stops itself in the middle of a step, when the other one has heard where it is."""

    rank: int
    signal: signal.Signals | None
    folder: Path

    def __init__(self, *limits: float) -> None:
        super().__init__(*limits)
        if dist.get_rank() != self.rank:
            hear = self._witness.hear

            def hear_and_tell(words: Sequence[Word], seconds: float) -> None:
                hear(words, seconds)
                if words[self.rank].mark.limit == STUCK_TIMEOUT:
                    (self.folder / HEARD).touch()

            self._witness.hear = hear_and_tell  # type: ignore[method-assign]

    def mark(self, place: str, is_pause: bool = False) -> None:
        super().mark(place, is_pause)
        if not is_stuck_at(self._mark) or self.signal is None or dist.get_rank() != self.rank:
            return
        judge = self._witness.judge
        self._witness.judge = lambda limit: None  # type: ignore[assignment, method-assign]  # not before it is stuck
        self._mark = replace(self._mark, limit=STUCK_TIMEOUT)
        while not (self.folder / HEARD).exists():
            time.sleep(0.02)
        (self.folder / STUCK_AT).write_text(str(time.time()))
        os.kill(os.getpid(), self.signal)
        self._witness.judge = judge  # type: ignore[method-assign]


def is_stuck_at(mark: Mark) -> bool:
    """Whether this is the place, and not the wait for its data."""
    return mark.step == STUCK_STEP and mark.place.startswith(STUCK_PLACE) and not mark.place.endswith("its data")


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
    parts = replace(train.PARTS, heartbeat=StuckHeartbeat)
    if what == "slow":
        parts = replace(parts, batches=SlowBatches, checkpoints=SlowCheckpoints)
    device = initialize_ranks(10 * HANG_SECONDS)
    limit = STEP_TIMEOUT if what == "slow" else LONG_TIMEOUT
    code = train.run(parse_arguments([*flags, "--step_timeout", str(limit)]), device, parts)
    close_ranks()
    sys.exit(code)
