"""Updates that DeepSpeed skips because the gradient is not finite: it reports nothing and continues."""

from __future__ import annotations

from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.training.watch.monitor import Monitor

# This many in a row end a run: the weights no longer change.
MOST_SKIPPED_STEPS = 3


class SkippedSteps:
    """Counts an engine's skipped updates and reports them; the counter is on the host and the same on all ranks."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._seen = int(engine.skipped_steps)
        self._in_a_row = 0

    @property
    def total(self) -> int:
        """All that were skipped since the run began, before a resume too."""
        return int(self._engine.skipped_steps)

    def after_update(self, done: int, monitor: Monitor) -> bool:
        """Reports the update after `done` steps if it was skipped; returns whether it was.

        Raises:
            InputError: It was the last of `MOST_SKIPPED_STEPS` in a row.
        """
        was_skipped = self.total > self._seen
        self._seen = self.total
        self._in_a_row = self._in_a_row + 1 if was_skipped else 0
        if was_skipped:
            what = f"step {done}: the gradient is not finite (NaN or infinity), the update was skipped"
            if self._in_a_row == MOST_SKIPPED_STEPS:
                raise InputError(
                    f"{what}, like the {MOST_SKIPPED_STEPS - 1} before it: lower --learning_rate or raise "
                    "--warmup_steps, and resume from the last checkpoint"
                )
            monitor.message(f"warning: {what}")
        return was_skipped
