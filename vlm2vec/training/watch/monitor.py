"""Where a run's figures go: TensorBoard, a JSONL file, one line of text, a progress bar. The same fields everywhere."""

from __future__ import annotations

import html
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm2vec.errors import printable
from vlm2vec.files import committed
from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import MASKED_SIMILAR, Figures

LOG = "log.jsonl"


class Monitor:
    """Takes what a run reports. This one keeps none of it: for all ranks but the first."""

    def configuration(self, values: Mapping[str, Any]) -> None:
        """The resolved arguments, once."""

    def advance(self) -> None:
        """A step is done."""

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """A few pairs of the batch that comes first."""

    def figures(self, step: int, figures: Figures) -> None:
        """A window's figures after `step` steps."""

    def scores(self, step: int, summary: Mapping[str, Any]) -> None:
        """An evaluation's scores after `step` steps, as `vlm2vec.evaluation.aggregation.summarise` gives them."""

    def bad_sample(self, step: int, reason: str) -> None:
        """A sample of a step, counted from 0, that could not be read; another one stands in its place."""

    def message(self, text: str) -> None:
        """A line for whoever watches."""

    def close(self) -> None:
        """Flushes everything."""


class RunMonitor(Monitor):
    """Writes below a run's folder and to the terminal.

    Args:
        output_dir: The run's folder; `tensorboard/` and `log.jsonl` lie in it.
        max_steps: Steps of the run.
        first_step: Steps done before.
    """

    def __init__(self, output_dir: Path, max_steps: int, first_step: int = 0) -> None:
        # Imported here: the TensorBoard writer takes a second that the other ranks need not spend.
        from torch.utils.tensorboard import SummaryWriter

        self._max_steps = max_steps
        self._first_step = first_step
        # What a killed run has written of later steps is written again: TensorBoard drops it, the log is cut.
        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step + 1)
        _cut_log(output_dir / LOG, first_step)
        self._log = (output_dir / LOG).open("a", encoding="utf-8")
        self._bar = tqdm(
            total=max_steps, initial=first_step, unit="step", desc="train", disable=not sys.stderr.isatty()
        )

    def configuration(self, values: Mapping[str, Any]) -> None:
        """Puts the resolved arguments on TensorBoard's text page."""
        table = "\n".join(f"| {name} | `{value}` |" for name, value in sorted(values.items()))
        table = f"| argument | value |\n| --- | --- |\n{table}"
        self._writer.add_text("arguments", printable(table), self._first_step)

    def advance(self) -> None:
        """Moves the progress bar."""
        self._bar.update()

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """Writes texts and images to TensorBoard, a line a pair to the terminal."""
        cells = [[str(n), each.subset, each.query, each.positive] for n, each in enumerate(pairs, 1)]
        rows = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)
        header = "| # | subset | query | target |\n| --- | --- | --- | --- |"
        self._writer.add_text("pairs", printable(f"{header}\n{rows}"), self._first_step)
        for number, pair in enumerate(pairs, 1):
            if pair.image is not None:
                tag = f"pairs/{number}_{pair.subset}"
                self._writer.add_image(tag, pair.image, self._first_step, dataformats="HWC")
            self.message(f"pair {number} of the first batch: {pair.line}")
        self._writer.flush()

    def figures(self, step: int, figures: Figures) -> None:
        """Writes one window everywhere."""
        values = figures.values
        for name, value in values.items():
            self._writer.add_scalar(name if "/" in name else f"run/{name}", value, step)
        for name, counts in figures.histograms.items():
            self._add_histogram(name, counts, step)
        self._writer.flush()
        self._log.write(json.dumps({"step": step, **values, **figures.histograms}) + "\n")
        self._log.flush()
        remaining = (self._max_steps - step) * values["milliseconds_per_step"] / 1000
        mean, hardest = (values.get(f"similarity/{kind}_negative") for kind in ("mean", "hardest"))
        negatives = f"negatives {mean:.2f}, hardest {hardest:.2f} | " if mean is not None else ""
        mfu = f"MFU {values['mfu']:.1%} | " if "mfu" in values else ""
        masked = f"masked {values[MASKED_SIMILAR]:.1f}/step | " if MASKED_SIMILAR in values else ""
        self.message(
            f"step {step}/{self._max_steps} | loss {values['loss']:.4f} | hit@1 {values['hit@1']:.3f} | "
            f"{negatives}{masked}grad norm {values['gradient_norm']:.3f} | lr {values['learning_rate']:.2e} | "
            f"{values['milliseconds_per_step']:.0f} ms/step | {values['pairs_per_second']:.1f} pairs/s | "
            f"{values['tokens_per_second']:.0f} tokens/s | {mfu}peak {values['peak_memory_gib']:.1f} GiB | "
            f"data wait {values['data_wait_share']:.1%} | ETA {timedelta(seconds=round(remaining))}"
        )

    def _add_histogram(self, name: str, counts: Sequence[int], step: int) -> None:
        """Cosines counted in equal steps from -1 to 1; TensorBoard shows the part that has any."""
        edges = np.linspace(-1, 1, len(counts) + 1)
        filled = np.flatnonzero(counts)
        if not len(filled):
            return
        shown = slice(int(filled[0]), int(filled[-1]) + 1)
        lefts, rights, kept = edges[:-1][shown], edges[1:][shown], np.array(counts)[shown]
        middles = (lefts + rights) / 2
        self._writer.add_histogram_raw(
            name,
            min=lefts[0],
            max=rights[-1],
            num=kept.sum(),
            sum=(middles * kept).sum(),
            sum_squares=(middles**2 * kept).sum(),
            bucket_limits=rights.tolist(),
            bucket_counts=kept.tolist(),
            global_step=step,
        )

    def scores(self, step: int, summary: Mapping[str, Any]) -> None:
        """Writes Precision@1 of groups and datasets everywhere."""
        groups = {name: mean for name, mean in summary.items() if isinstance(mean, dict) and "acc" in mean}
        means = {name: mean["acc"] for name, mean in {**summary["meta_tasks"], **groups}.items()}
        values = {f"eval/{name}": acc for name, acc in means.items()}
        values |= {f"eval_dataset/{name}": score["acc"] for name, score in summary["datasets"].items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        shown = ", ".join(f"{name} {acc:.1%}" for name, acc in means.items())
        self.message(f"step {step}/{self._max_steps} | Precision@1: {shown}")
        for warning in summary["warnings"]:
            self.message(f"warning: {warning}")

    def bad_sample(self, step: int, reason: str) -> None:
        """Writes what is wrong with a sample everywhere."""
        self._writer.add_text("bad_samples", printable(reason), step)
        self._log.write(json.dumps({"step": step + 1, "bad_sample": reason}) + "\n")
        self._log.flush()
        self.message(f"step {step + 1}: replaced an unreadable sample: {reason}")

    def message(self, text: str) -> None:
        """Prints a line above the progress bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Flushes and closes all sinks."""
        self._bar.close()
        self._writer.close()
        self._log.close()


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, as it stands in the data."""
    plain = html.escape(" ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", plain)


def _cut_log(path: Path, last_step: int) -> None:
    """Keeps the lines up to a step; a line that a kill has torn goes too."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with committed(path) as temporary:
            temporary.write_text("".join(line for line in lines if _step_of(line) <= last_step), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
