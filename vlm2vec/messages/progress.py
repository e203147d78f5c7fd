"""Progress of long work: a bar on a terminal, whole lines at intervals where stderr is a file or a pipe."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

# From one line to the next in a log file; a terminal sees more.
SECONDS_BETWEEN_LINES = 30.0
# Shorter work shows nothing on a terminal.
_SECONDS_BEFORE_A_BAR = 1.0


class Progress(Protocol):
    """What shows how much of some work is done."""

    def __enter__(self) -> Progress:
        """Begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> object:
        """Ends."""

    def update(self, done: int = 1, /) -> object:
        """So much more is done."""


def progress_bar(total: int, description: str, unit: str) -> Progress:
    """Shows how much of some work is done, on the first rank: its own part, which is about the same for all.

    Work of less than a second draws no bar, and work of less than half a minute writes no line.

    Args:
        total: All of the work.
        description: What is done, such as "encode".
        unit: What is counted, such as "item"; "B" for bytes.
    """
    if sys.stderr.isatty() and _is_first_rank():
        return tqdm(
            total=total,
            desc=description,
            unit=unit,
            unit_scale=unit == "B",
            delay=_SECONDS_BEFORE_A_BAR,
            leave=False,
        )
    return ProgressLines(total, description, unit, is_silent=not _is_first_rank())


class ProgressLines:
    """Writes a line on stderr every `SECONDS_BETWEEN_LINES`, when work of that time has been reported.

    Args:
        total: All of the work.
        description: What is done.
        unit: What is counted; "B" for bytes.
        is_silent: Whether nothing is written.
    """

    def __init__(self, total: int, description: str, unit: str, is_silent: bool = False) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._is_silent = is_silent
        self._done = 0
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> ProgressLines:
        self._begin = self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do."""

    def update(self, done: int = 1, /) -> None:
        """So much more is done."""
        self._done += done
        now = time.monotonic()
        if self._is_silent or now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        left = (now - self._begin) * (self._total - self._done) / max(self._done, 1)
        share = f"{self._done / max(self._total, 1):.0%}"
        print(
            f"{self._description}: {self._amount(self._done)} of {self._amount(self._total)} ({share}), "
            f"about {tqdm.format_interval(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def _amount(self, number: int) -> str:
        if self._unit == "B":
            return f"{tqdm.format_sizeof(number)}B"
        return f"{number:,} {self._unit}{'s' * (number != 1)}"


@contextmanager
def still_running(what: str) -> Iterator[None]:
    """Prints a line every `SECONDS_BETWEEN_LINES` while the block runs; for work that cannot be counted.

    Args:
        what: The work, such as "loading the model".
    """
    if not _is_first_rank():
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        begin = time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_LINES):
            tqdm.write(f"still {what} ({time.monotonic() - begin:.0f} s)", file=sys.stdout)

    thread = threading.Thread(target=tell, name="still running", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def announce_imports() -> None:
    """Says on a terminal why a program is silent at first; called before torch and transformers are imported."""
    if sys.stderr.isatty() and _is_first_rank() and not {"-h", "--help"} & {*sys.argv}:
        print("importing torch and transformers", file=sys.stderr, flush=True)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
