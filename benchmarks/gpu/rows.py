"""Rows of tables, each measured, printed and stored by itself, so that a failure or time-out loses no other row."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NOT_MEASURED, NOT_RUN = "not measured", "not run"
_LONGEST_REASON = 160

# The measurements of a row, by name; `None` if not measured.
Figures = dict[str, Any]


class LeftOutError(Exception):
    """A row cannot be measured on this device; the message has the reason. Not a failure."""


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: Printed above it.
        columns: Titles of the columns after the first.
        cells: Makes their texts from a row's measurements.
    """

    title: str
    columns: tuple[str, ...]
    cells: Callable[[Figures], list[str]]


class Recorder:
    """Runs rows, prints them in Markdown and appends each to a JSONL file.

    Args:
        file: The file; rows of earlier runs are kept. Rows not measured because there is no GPU are not written.
        seconds: After this many seconds, no more rows are started.
        device: The device's name; None if there is no device to measure on.
    """

    def __init__(self, file: Path, seconds: float, device: str | None) -> None:
        self._file = file
        self._start = time.monotonic()
        self._seconds = seconds
        self._device = device
        self._section: Section | None = None
        self.num_failed = 0

    def begin(self, section: Section) -> None:
        """Prints the head of a table, to which the following rows belong."""
        self._section = section
        head = " | ".join(["run", *section.columns])
        print(f"\n### {section.title}\n\n| {head} |\n|{' --- |' * (1 + len(section.columns))}", flush=True)

    def row(self, what: str, measure: Callable[[], Figures]) -> bool:
        """Measures one row, unless there is no device or the time is over. An exception is printed in the row.

        Returns:
            Whether the row did not fail.
        """
        assert self._section is not None
        status, figures = "ok", {}
        start = time.monotonic()
        if self._device is None:
            status = NOT_MEASURED
        elif start - self._start > self._seconds:
            status = NOT_RUN
        else:
            try:
                figures = measure()
            except LeftOutError as reason:
                status = str(reason)
            except Exception as error:
                status = _reason(error)
                traceback.print_exc(file=sys.stderr)
                self.num_failed += 1
            release_memory()
        num_columns = len(self._section.columns)
        if status == "ok":
            cells = self._section.cells(figures)
        else:
            cells = [status] * num_columns if status == NOT_MEASURED else [status, *[""] * (num_columns - 1)]
        print(f"| {' | '.join([what, *cells])} |", flush=True)
        if status != NOT_MEASURED:
            seconds = round(time.monotonic() - start, 1)
            self._keep(
                {"section": self._section.title, "run": what, "status": status, "row_seconds": seconds, **figures}
            )
        return status in ("ok", NOT_MEASURED, NOT_RUN)

    def _keep(self, row: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"device": self._device, **row}) + "\n")


def _reason(error: BaseException) -> str:
    """One line for a cell."""
    if "out of memory" in str(error).lower():
        return "out of memory"
    message = " ".join(str(error).split()).replace("|", "/")
    return f"failed: {type(error).__name__}: {message[:_LONGEST_REASON]}"


def release_memory() -> None:
    """On a GPU, releases cached memory and resets the peak."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
