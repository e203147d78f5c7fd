"""What a loader's worker process does first: it lives for its rank alone, and holds nothing of the rank's network."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # prctl(2)


def prepare_worker(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`, with workers that were forked."""
    end_with_parent()
    close_listening_sockets()
    # A signal to the whole process group asks the ranks to save; a worker that ended by it would end its rank.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # What the rank had is never garbage here; each look through it takes 0.15 s and copies its pages.
    gc.freeze()


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however that ends; elsewhere torch looks every 5 s."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before the call
        os._exit(1)


def close_listening_sockets() -> None:
    """Closes what a parent listens on: a copy here would keep MASTER_PORT busy after the parent's end."""
    with suppress(OSError):  # no /proc
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # not a socket, or closed by now
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    is_listening = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    is_network = copy.family in (socket.AF_INET, socket.AF_INET6)
                if is_listening and is_network:
                    os.close(int(name))
