"""What a run shows on a terminal or in a job's output, below 100 columns: a table of metrics, messages, a bar."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.sinks.sink import RunCard, Scores, Sink

# Characters of a line. Paths are never cut.
WIDTH = 99
# Rows of metrics from one heading to the next.
ROWS_OF_A_HEADING = 20


@dataclass(frozen=True)
class _Column:
    """A metric in a row.

    Attributes:
        heading: Its name.
        width: Characters of the usual values; a longer one moves what follows.
        name: Of the metric in log.jsonl; a run without it has no such column.
        text: Of its value.
    """

    heading: str
    width: int
    name: str
    text: Callable[[float], str]


def _seconds(milliseconds: float) -> str:
    seconds = milliseconds / 1000
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


_COLUMNS = (
    _Column("loss", 6, "loss", "{:.4f}".format),
    _Column("hit@1", 5, "hit@1", "{:.3f}".format),
    _Column("hardest", 7, "similarity/hardest_negative", "{:.3f}".format),
    _Column("norm", 6, "gradient_norm", "{:.4g}".format),
    _Column("lr", 7, "learning_rate", "{:.1e}".format),
    _Column("s/step", 6, "milliseconds_per_step", _seconds),
    _Column("pairs/s", 7, "pairs_per_second", _rate),
    _Column("MFU", 4, "mfu", "{:.0%}".format),
    _Column("wait", 4, "data_wait_share", "{:.0%}".format),
    _Column("GiB", 4, "peak_memory_gib", "{:.1f}".format),
)


class TerminalSink(Sink):
    """Prints to stdout; the bar, on a terminal only, goes to stderr.

    Args:
        max_steps: Steps of the run.
        first_step: Steps done before this start.
    """

    def __init__(self, max_steps: int, first_step: int) -> None:
        self._max_steps = max_steps
        self._step_width = max(len("step"), 2 * len(str(max_steps)) + 1)
        self._rows = 0
        self._bar = tqdm(
            total=max_steps, initial=first_step, unit="step", desc="train", disable=not sys.stderr.isatty()
        )

    def begin(self, card: RunCard) -> None:
        """Prints what is about to run, one fact per line."""
        width = max(map(len, card.facts), default=0)
        for name, fact in card.facts.items():
            self.message(_wrapped(f"{name:<{width}}  {fact}", indent=width + 2))

    def advance(self) -> None:
        """Moves the progress bar."""
        self._bar.update()

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """Prints name, query and target of each, the beginning of long texts."""
        for number, pair in enumerate(pairs, 1):
            self.message(f"pair {number} of the first batch: {pair.name}")
            self.message(f"  query   {_beginning(pair.query)}")
            self.message(f"  target  {_beginning(pair.positive)}")

    def figures(self, step: int, figures: Figures) -> None:
        """Prints one row."""
        columns = [each for each in _COLUMNS if each.name in figures.values]
        if self._rows % ROWS_OF_A_HEADING == 0:
            headings = (f"{each.heading:>{each.width}}" for each in columns)
            self.message("  ".join([f"{'step':>{self._step_width}}", *headings, f"{'ETA':>8}"]))
        self._rows += 1
        cells = (f"{each.text(figures.values[each.name]):>{each.width}}" for each in columns)
        remaining = (self._max_steps - step) * figures.values["milliseconds_per_step"] / 1000
        place = f"{step}/{self._max_steps}"
        self.message("  ".join([f"{place:>{self._step_width}}", *cells, f"{_duration(remaining):>8}"]))

    def scores(self, step: int, scores: Scores) -> None:
        """Prints the means over groups of datasets."""
        shown = ", ".join(f"{name} {score:.1%}" for name, score in scores.means.items())
        self.message(_wrapped(f"step {step}/{self._max_steps} | Precision@1: {shown}", indent=2))
        for warning in scores.warnings:
            self.message(f"warning: {warning}")

    def bad_sample(self, step: int, reason: str) -> None:
        """Prints what is wrong with a sample."""
        self.message(f"step {step + 1}: replaced an unreadable sample: {reason}")

    def message(self, text: str) -> None:
        """Prints a line above the progress bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _beginning(text: str) -> str:
    plain = " ".join(text.split())
    most = WIDTH - len("  target  ")
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _duration(seconds: float) -> str:
    """At most 8 characters: 1:02:03, or 3d 04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 100:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
