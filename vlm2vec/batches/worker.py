"""Prepares a loader's worker process: it ends with its rank and closes the rank's listening sockets."""

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
