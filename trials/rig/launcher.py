"""Starts real ranks for a test, with a time limit that ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trials.rig.patience import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
# Seconds that the other ranks get to end by themselves after one has failed.
SECONDS_FOR_OTHERS = 100
_PLACE_IN_A_JOB = {"MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"}


@dataclass(frozen=True)
class RankResult:
    """The result of one rank; output is stdout and stderr together."""

    exit_code: int
    output: str


def environment(python: str | Path = sys.executable) -> dict[str, str]:
    """The environment for ranks on the CPU: one thread per rank, and `python` is this interpreter.

    Tests that build an engine in this process leave the variables of a job of one rank, which are removed.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _PLACE_IN_A_JOB},
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    num_ranks: int, arguments: Sequence[str], log_dir: Path, timeout: float = HANG_SECONDS
) -> list[RankResult]:
    """Runs `python ARGUMENTS` as ranks of one job.

    When a rank fails, the others get `SECONDS_FOR_OTHERS` to end by themselves. Ranks that are left when the time
    is over are killed, each with its process group, and have the exit code of a kill.
    """
    port = str(free_port())
    processes: list[tuple[subprocess.Popen[bytes], Path]] = []
    for rank in range(num_ranks):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        log = log_dir / f"rank{rank}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**environment(), **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append((process, log))
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process, _ in processes) and time.monotonic() < deadline:
            if any(process.poll() for process, _ in processes):
                deadline = min(deadline, time.monotonic() + SECONDS_FOR_OTHERS)
            time.sleep(0.05)
    finally:
        for process, _ in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [RankResult(process.returncode, log.read_text(errors="replace")) for process, log in processes]


def run_ranks(num_ranks: int, arguments: Sequence[str], log_dir: Path, timeout: float = HANG_SECONDS) -> list[str]:
    """Like `start_ranks`, for jobs that must succeed; returns the ranks' output."""
    results = start_ranks(num_ranks, arguments, log_dir, timeout)
    for rank, result in enumerate(results):
        assert result.exit_code == 0, (
            f"rank {rank} of {num_ranks} ended with {result.exit_code}:\n{result.output[-4000:]}"
        )
    return [result.output for result in results]
