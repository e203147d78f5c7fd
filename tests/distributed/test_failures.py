"""Steps that fail on one rank end the job on all ranks, and say where and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.workers.failing import FAILED_AT, FAILING_ITEM, FAILING_RANK, PAIRS, name
from trials.rig.launcher import REPOSITORY, environment, free_port
from trials.rig.patience import HANG_SECONDS

RANKS = 2
SECONDS_TO_END = HANG_SECONDS


@dataclass(frozen=True)
class Job:
    """How a job ended; `seconds` counts from the failure of its rank."""

    exit_code: int
    output: str
    seconds: float
    caught: list[dict[str, object]]


def launch(python: Path, folder: Path, *arguments: str) -> Job:
    """A job of the `deepspeed` launcher in a process group of its own, so that nothing of it is left."""
    launcher = [*(str(python), "-m", "deepspeed.launcher.runner", "--num_gpus", str(RANKS))]
    launcher += ["--master_port", str(free_port()), "--module", "tests.distributed.workers.failing"]
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            [*launcher, "--folder", str(folder), *arguments],
            cwd=REPOSITORY,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=HANG_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ended = time.time()
    output = (folder / "output.log").read_text(errors="replace")
    assert (folder / FAILED_AT).exists(), output[-4000:]
    caught = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return Job(process.returncode, output, ended - float((folder / FAILED_AT).read_text()), caught)


@pytest.fixture(scope="module")
def jobs(forked_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """By the pass in which the encoder fails."""
    return {
        "pass 1": launch(forked_python, tmp_path_factory.mktemp("pass1"), "--stage", "2"),
        "pass 2": launch(forked_python, tmp_path_factory.mktemp("pass2"), "--stage", "3", "--fails_with_graph"),
    }


@pytest.mark.parametrize("where", ["pass 1", "pass 2"])
def test_a_rank_that_fails_ends_the_job_and_names_the_item(where: str, jobs: dict[str, Job]) -> None:
    job = jobs[where]
    place = f"rank {FAILING_RANK}, {where}, chunk {FAILING_ITEM + 1} of {2 * PAIRS}"
    expected = f"ChunkError: {place} ({name(FAILING_RANK, FAILING_ITEM)}): OSError: the image is truncated"
    assert expected in job.output, job.output[-4000:]
    assert job.exit_code > 0  # not killed by this test's own time limit
    assert job.seconds < SECONDS_TO_END


@pytest.mark.parametrize("where", ["pass 1", "pass 2"])
def test_a_representation_that_is_no_number_updates_nothing(where: str, jobs: dict[str, Job]) -> None:
    """All ranks refuse the step, whichever rank's item it was, and can continue."""
    for rank, caught in enumerate(jobs[where].caught):
        message = str(caught["not finite"])
        assert message.startswith(f"rank {rank}: 1 of {4 * PAIRS} representations are not finite")
        assert "the loss of its rows is nan; nothing was updated" in message
        assert caught["gradients"] == [False, False]
        assert caught["after"] == caught["before"]
        assert caught["trained"] != caught["before"]
    assert jobs[where].caught[0]["trained"] == jobs[where].caught[1]["trained"]


@pytest.mark.parametrize("where", ["pass 1", "pass 2"])
def test_ranks_with_different_batches_are_refused(where: str, jobs: dict[str, Job]) -> None:
    for caught in jobs[where].caught:
        assert str(caught["another batch"]).startswith("ranks [1] have a different global batch than rank 0")
