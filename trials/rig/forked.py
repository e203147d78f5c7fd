"""Starts real ranks by forking a process that has imported everything, because imports take most of a start."""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from trials.rig.launcher import SECONDS_FOR_OTHERS, free_port
from trials.rig.launcher import environment as ranks_environment
from trials.rig.patience import HANG_SECONDS
from vlm2vec.training.checkpoints.state_files import environment


@cache
def fork_server() -> ForkServerContext:
    """The process' fork server; its first child waits for the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trials.rig.forked_imports"])
    first = context.Process(target=int)
    with environment(**ranks_environment()):
        first.start()
    first.join()
    return context


def warm_up() -> None:
    """Waits for the imports, so that later starts can be timed."""
    fork_server()


def start_forked(
    num_ranks: int, main: Callable[..., None], arguments: Sequence[Any], log_dir: Path
) -> list[ForkServerProcess]:
    """Starts ranks that call `main(*arguments)`, each in its own process group; output goes to `rank*.log`."""
    port = free_port()
    ranks = [
        fork_server().Process(target=_rank, args=(rank, num_ranks, port, log_dir, main, tuple(arguments)))
        for rank in range(num_ranks)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def run_forked(
    num_ranks: int, main: Callable[..., None], arguments: Sequence[Any], log_dir: Path, timeout: float = HANG_SECONDS
) -> list[str]:
    """Runs ranks that must succeed; returns their output."""
    ranks = start_forked(num_ranks, main, arguments, log_dir)
    wait(ranks, log_dir, timeout)
    return [(log_dir / f"rank{rank}.log").read_text(errors="replace") for rank in range(num_ranks)]


def run_ranks(num_ranks: int, arguments: Sequence[str], log_dir: Path, timeout: float = HANG_SECONDS) -> list[str]:
    """Like `launcher.run_ranks` for `-m MODULE FLAGS`, but without the time that each rank needs for its imports."""
    assert arguments[0] == "-m"
    return run_forked(num_ranks, _run_module, [list(arguments[1:])], log_dir, timeout)


def run_program(words: Sequence[str], log_dir: Path, timeout: float = HANG_SECONDS) -> tuple[int | None, str]:
    """Runs `-m MODULE FLAGS` as the only rank; returns its exit code (None if it was killed) and its output."""
    (code,) = ended(start_forked(1, _run_module, [list(words)], log_dir), timeout)
    return code, (log_dir / "rank0.log").read_text(errors="replace")


def _run_module(words: list[str]) -> None:
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def ended(ranks: Sequence[ForkServerProcess], timeout: float = HANG_SECONDS) -> list[int | None]:
    """Waits for all ranks; returns exit codes, None for ranks killed because one failed or the time was over."""
    deadline = time.monotonic() + timeout
    while any(rank.exitcode is None for rank in ranks) and time.monotonic() < deadline:
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + SECONDS_FOR_OTHERS)
        time.sleep(0.02)
    codes = [rank.exitcode for rank in ranks]
    if any(code != 0 for code in codes):
        kill(ranks)
    return codes


def wait(ranks: Sequence[ForkServerProcess], log_dir: Path, timeout: float = HANG_SECONDS) -> None:
    """Waits until all ranks have succeeded; if one fails, or the time is over, the others are killed."""
    codes = ended(ranks, timeout)
    if any(code != 0 for code in codes):
        logs = [path.read_text(errors="replace")[-3000:] for path in sorted(log_dir.glob("rank*.log"))]
        raise AssertionError(f"ranks ended with {codes}:\n" + "\n".join(logs))


def kill(ranks: Sequence[ForkServerProcess], moments: random.Random | None = None) -> None:
    """Kills all ranks and their children by SIGKILL; with `moments`, in random order and a moment apart."""
    order = list(ranks)
    if moments is not None:
        moments.shuffle(order)
    for rank in order:
        assert rank.pid is not None, "it was started"
        try:
            os.killpg(rank.pid, signal.SIGKILL)  # with its loader's workers
        except ProcessLookupError:
            rank.kill()  # it has not made its group yet, or has ended
        if moments is not None:
            time.sleep(moments.uniform(0, 0.05))
    for rank in ranks:
        rank.join()


def are_gone(groups: Sequence[int | None], seconds: float = HANG_SECONDS) -> bool:
    """Whether all processes of these groups end soon, loader workers too; zombies only wait for init."""
    deadline = time.monotonic() + seconds
    while _alive(groups):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _alive(groups: Sequence[int | None]) -> list[int]:
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
    return alive


def _rank(
    rank: int, num_ranks: int, port: int, log_dir: Path, main: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a rank that was not forked
    log = os.open(log_dir / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    main(*arguments)
