"""Stopping a run from outside: a signal asks, the run saves at the next step boundary and ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

# sysexits.h's EX_TEMPFAIL: not done, start again to go on.
EXIT_STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: SLURM's warning before the time limit (--signal=USR1@...)


class StopRequest:
    """Within it, SIGTERM and SIGUSR1 set `requested` instead of ending the process.

    Attributes:
        requested: Whether this process got one of the signals.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
