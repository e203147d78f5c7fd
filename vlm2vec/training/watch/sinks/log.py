"""log.jsonl in a run's folder: one line per logging interval, evaluation and replaced sample."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vlm2vec.files import committed
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.sinks.sink import Scores, Sink

LOG = "log.jsonl"


class LogSink(Sink):
    """Writes the metrics under the names that `StepMeter` gives them.

    Args:
        output_dir: The run's folder.
        first_step: Steps done before this start; lines of later steps, which a killed start has written, are removed.
    """

    def __init__(self, output_dir: Path, first_step: int) -> None:
        _cut(output_dir / LOG, first_step)
        self._log = (output_dir / LOG).open("a", encoding="utf-8")

    def figures(self, step: int, figures: Figures) -> None:
        """Writes one interval."""
        self._write({"step": step, **figures.values, **figures.histograms})

    def scores(self, step: int, scores: Scores) -> None:
        """Writes one evaluation."""
        self._write({"step": step, **scores.values})

    def bad_sample(self, step: int, reason: str) -> None:
        """Writes what is wrong with a sample."""
        self._write({"step": step + 1, "bad_sample": reason})

    def close(self) -> None:
        """Closes the file."""
        self._log.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def _cut(path: Path, last_step: int) -> None:
    """Keeps the lines up to a step; an incomplete line, left by a kill, goes too."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with committed(path) as temporary:
            temporary.write_text("".join(line for line in lines if _step_of(line) <= last_step), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
