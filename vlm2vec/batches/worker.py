"""A loader's worker processes: what each does first, and how a rank ends them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

_PR_SET_PDEATHSIG = 1  # prctl(2)
_with_exit_guard: set[int] = set()  # processes that kill the workers that are left at their exit


def process_loader(dataset: Dataset[Any], num_workers: int, **options: Any) -> DataLoader[Any]:
    """A loader of single elements, made ahead by worker processes.

    Args:
        dataset: What to load.
        num_workers: Number of processes; 0: everything is made in this process.
        options: Other options of `DataLoader`.
    """
    if num_workers and os.getpid() not in _with_exit_guard:
        _with_exit_guard.add(os.getpid())
        Finalize(None, _kill_workers, exitpriority=0)
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        # A separate generator: the loader draws a seed, which would change the state that a checkpoint restores.
        generator=torch.Generator(),
        **options,
    )


def end_workers(iterator: Iterator[Any]) -> None:
    """Ends the worker processes of a loader's iterator, if it has some.

    They otherwise end when the iterator is freed, which a reference cycle, such as an exception's traceback, can delay
    until the interpreter exits.
    """
    shut_down = getattr(iterator, "_shutdown_workers", None)  # torch has no public method
    if shut_down is not None:
        shut_down()


def _kill_workers() -> None:
    """At the interpreter's exit: multiprocessing would send its children a SIGTERM, which they ignore, and wait."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each killed worker
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def prepare_worker(worker: int) -> None:
    """Initialises a forked worker; for `DataLoader(worker_init_fn=...)`."""
    end_with_parent()
    close_listening_sockets()
    # A signal to the whole process group asks the ranks to save. A worker that it killed would end its rank too early.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # Objects of the rank are never garbage here; each collection over them would take 0.15 s and copy their pages.
    gc.freeze()


def end_with_parent() -> None:
    """On Linux, has the kernel kill this process when its parent ends; elsewhere torch checks every 5 seconds."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # the parent ended before the call
        os._exit(1)


def close_listening_sockets() -> None:
    """Closes copies of the parent's listening sockets, which would keep MASTER_PORT busy after the parent's end."""
    with suppress(OSError):  # there may be no /proc
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # not a socket, or already closed
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    is_listening = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    is_network = copy.family in (socket.AF_INET, socket.AF_INET6)
                if is_listening and is_network:
                    os.close(int(name))
