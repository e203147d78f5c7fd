"""A job never hangs: a stuck rank is named, and a slow one is left alone."""

from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.workers.stuck import LONG_TIMEOUT, STUCK_AT, STUCK_PLACE, STUCK_STEP, main
from trials.rig.forked import kill, start_forked, warm_up
from trials.rig.patience import HANG_SECONDS
from trials.rig.run_flags import run_flags
from vlm2vec.training.watch.stuck import EXIT_STUCK

COMMON = [
    *("--subset_name", "ColorVQA", "--global_batch_size", "8", "--max_steps", str(STUCK_STEP), "--max_len", "64"),
    *("--chunk_tokens", "128", "--keep_graphs", "0", "--dataloader_num_workers", "0"),
]


@dataclass(frozen=True)
class Job:
    """How a job of two ranks ended; seconds count from the moment in which one of them was stuck."""

    codes: list[int | None]
    outputs: list[str]
    seconds: float
    pids: list[int | None]


class Run:
    """A job of two ranks of which one, `rank`, gets stuck."""

    def __init__(self, what: str, rank: int, stage: int, root: Path, model: Path, shards: Path) -> None:
        self.what, self.rank = what, rank
        self.folder = root / f"{what}{rank}"
        self.folder.mkdir()
        self.ended = 0.0
        flags = run_flags(model, shards, self.folder / "run", f"zero{stage}", *COMMON)
        self.ranks = start_forked(2, main, [what, rank, flags, self.folder], self.folder)

    def is_over(self) -> bool:
        """Whether the ranks have ended; a stopped one continues when the other has ended, and has to end too."""
        if self.what != "slow" and not self.ended and self.ranks[1 - self.rank].exitcode is not None:
            self.ended = time.time()
            if self.what == "stopped":
                pid = self.ranks[self.rank].pid
                assert pid is not None  # it has been started
                os.kill(pid, signal.SIGCONT)
        return all(rank.exitcode is not None for rank in self.ranks)

    def outcome(self) -> Job:
        codes = [rank.exitcode for rank in self.ranks]
        kill(self.ranks)
        outputs = [(self.folder / f"rank{each}.log").read_text(errors="replace") for each in range(2)]
        stuck_at = self.folder / STUCK_AT
        seconds = self.ended - float(stuck_at.read_text()) if stuck_at.exists() else 0.0
        return Job(codes, outputs, seconds, [rank.pid for rank in self.ranks])


@pytest.fixture(scope="module")
def jobs(mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All at once: most of their time is waiting."""
    warm_up()
    root = tmp_path_factory.mktemp("stuck")
    kinds = [("stopped", 0, 3), ("stopped", 1, 3), ("killed", 1, 2), ("slow", 0, 2)]
    runs = [Run(what, rank, stage, root, mini_model_dir, mini_shards_dir) for what, rank, stage in kinds]
    deadline = time.monotonic() + HANG_SECONDS
    while sum(not run.is_over() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {run.folder.name: run.outcome() for run in runs}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_with_host_step_and_chunk(rank: int, jobs: dict[str, Job]) -> None:
    """Rank 0's process also holds the store through which ranks tell of themselves."""
    job = jobs[f"stopped{rank}"]
    other = job.outputs[1 - rank]
    assert job.codes[1 - rank] == EXIT_STUCK, other[-4000:]
    [error] = [line for line in other.splitlines() if line.startswith("error: ")]
    host = socket.gethostname()
    assert f"gives up: rank {rank} on {host} (process {job.pids[rank]}) has been silent for" in error
    assert f"last heard of in step {STUCK_STEP}, {STUCK_PLACE}" in error
    assert 0 < job.seconds < LONG_TIMEOUT / 2
    # Awake again, it does not wait for ranks that are no more.
    assert job.codes[rank] not in (None, 0, -signal.SIGKILL), job.outputs[rank][-4000:]


def test_a_killed_rank_ends_the_job_and_is_named(jobs: dict[str, Job]) -> None:
    job = jobs["killed1"]
    assert job.codes == [1, -signal.SIGKILL], job.outputs[0][-4000:]
    assert 0 < job.seconds < LONG_TIMEOUT / 2
    lines = job.outputs[0].splitlines()
    [named] = [number for number, line in enumerate(lines) if "is about to end, and rank 1 on" in line]
    assert f"last heard of in step {STUCK_STEP}, " in lines[named]
    # Said before the traceback of the collective, in which nothing of it stands.
    assert any("Traceback" in line for line in lines[named:])


def test_slow_data_and_a_slow_checkpoint_are_waited_for(jobs: dict[str, Job]) -> None:
    job = jobs["slow0"]
    assert job.codes == [0, 0], "\n".join(job.outputs)[-4000:]
