"""Progress bar of evaluations."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from vlm2vec.ranks import is_first_rank


def progress_bar(total: int, description: str, unit: str) -> tqdm[Any]:
    """A progress bar that moves on a terminal and keeps a log file readable.

    Work of less than a second draws no bar. If stderr is no terminal, it prints a line every 30 seconds. With several
    ranks, the first one shows its part of the work, which is about the same for all.
    """
    every = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        delay=max(1.0, every),
        mininterval=every,
        leave=False,
        disable=not is_first_rank(),
    )
