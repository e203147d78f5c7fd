"""Stops a run on a signal: it saves at the next step boundary and ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from vlm2vec.errors import EXIT_INTERRUPTED
from vlm2vec.ranks import is_first_rank

# EX_TEMPFAIL of sysexits.h: not finished, restart to resume.
EXIT_STOPPED = 75
# SIGUSR1: SLURM's warning before the time limit (--signal=USR1@...). SIGINT: Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# One Ctrl-C may arrive twice: from the terminal, and forwarded by a launcher.
SECONDS_OF_ONE_CTRL_C = 2.0


class StopRequest:
    """Context in which SIGTERM, SIGUSR1 and SIGINT set `requested` and do not end the process; a second SIGINT does.

    Attributes:
        requested: Whether this process received one of the signals.
        number: Number of the first signal; 0 if none.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        self._first_interrupt: float | None = None

    def __enter__(self) -> StopRequest:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.shutdown(socket.SHUT_RDWR)  # a forked worker may hold a copy, so closing is not enough
        self._thread.join()
        self._writer.close()
        self._reader.close()

    def name(self, device: torch.device) -> str:
        """Name of the signal that some rank received; all ranks call it (a collective)."""
        number = torch.tensor([self.number], device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return signal.Signals(int(number)).name if int(number) else "a signal"

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.number = self.number or number  # a launcher answers Ctrl-C with SIGTERM

    def _listen(self) -> None:
        """Runs in a thread: a second Ctrl-C ends the process even while the main thread waits in a collective.

        Python runs signal handlers only between bytecodes of the main thread; the wakeup socket delivers signals here.
        """
        while numbers := self._reader.recv(16):
            if signal.SIGINT not in numbers:
                continue
            now = time.monotonic()
            if self._first_interrupt is None:
                self._first_interrupt = now
                if is_first_rank():
                    os.write(
                        2,
                        b"Ctrl-C: the run saves a checkpoint after this step and ends; a second one ends it at once\n",
                    )
            elif now - self._first_interrupt > SECONDS_OF_ONE_CTRL_C:
                os._exit(EXIT_INTERRUPTED)  # the loader's workers end with their rank
