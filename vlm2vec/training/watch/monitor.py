"""Passes what a run reports to all its sinks: log.jsonl, the terminal and the trackers of --report_to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm2vec.training.flags.watch import TENSORBOARD, TRACKIO, WANDB
from vlm2vec.training.settings import WatchSettings
from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.sinks.log import LogSink
from vlm2vec.training.watch.sinks.run_id import run_id
from vlm2vec.training.watch.sinks.sink import RunCard, Scores, Sink
from vlm2vec.training.watch.sinks.terminal import TerminalSink


class Monitor:
    """Takes what a run reports.

    Args:
        sinks: Where it goes; none, on all ranks except the first.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = list(sinks)

    def begin(self, card: RunCard) -> None:
        """What is about to run, once per start."""
        self._tell(lambda sink: sink.begin(card))

    def advance(self) -> None:
        """A step is done."""
        self._tell(lambda sink: sink.advance())

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """A few pairs of the batch that comes first."""
        self._tell(lambda sink: sink.pairs(pairs))

    def figures(self, step: int, figures: Figures) -> None:
        """The metrics of an interval that ends after `step` steps."""
        self._tell(lambda sink: sink.figures(step, figures))

    def scores(self, step: int, summary: Mapping[str, Any]) -> None:
        """An evaluation's scores after `step` steps, as `vlm2vec.evaluation.aggregation.summarise` gives them."""
        groups = {name: mean for name, mean in summary.items() if isinstance(mean, dict) and "acc" in mean}
        means = {name: mean["acc"] for name, mean in {**summary["meta_tasks"], **groups}.items()}
        datasets = {name: score["acc"] for name, score in summary["datasets"].items()}
        scores = Scores(means, datasets, summary["warnings"])
        self._tell(lambda sink: sink.scores(step, scores))

    def bad_sample(self, step: int, reason: str) -> None:
        """A sample of step `step`, counted from 0, could not be read and was replaced."""
        self._tell(lambda sink: sink.bad_sample(step, reason))

    def message(self, text: str) -> None:
        """A line for the reader of the log."""
        self._tell(lambda sink: sink.message(text))

    def done(self, text: str) -> None:
        """All steps of the run are done; `text` says what to do next."""
        self._tell(lambda sink: sink.done())
        self.message("\n".join([text, *(sink.hint for sink in self._sinks if sink.hint)]))

    def close(self) -> None:
        """Writes what is left and closes all sinks."""
        self._tell(lambda sink: sink.close())

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                what(sink)
            except Exception as error:  # of any type: a tracker that fails is no reason to end a run
                if not sink.is_optional:
                    raise
                self._sinks.remove(sink)
                reason = " ".join(str(error).split()) or type(error).__name__
                self.message(f"warning: {type(sink).__name__} failed and gets no more metrics ({reason})")


def open_monitor(settings: WatchSettings, output_dir: Path, max_steps: int, first_step: int = 0) -> Monitor:
    """Opens everything that a run reports to; on its first rank.

    Args:
        settings: They name the trackers.
        output_dir: The run's folder.
        max_steps: Steps of the run.
        first_step: Steps done before this start. What a killed start has written of later steps is written again.

    Raises:
        InputError: A tracker that cannot start.
    """
    sinks: list[Sink] = [LogSink(output_dir, first_step), TerminalSink(max_steps, first_step)]
    # Imported only where they are asked for: they need packages of their own.
    if TENSORBOARD in settings.report_to:
        from vlm2vec.training.watch.sinks.tensorboard import TensorBoardSink

        sinks.append(TensorBoardSink(output_dir, first_step))
    if {WANDB, TRACKIO} & {*settings.report_to}:
        identifier = run_id(output_dir, first_step)
    if WANDB in settings.report_to:
        from vlm2vec.training.watch.sinks.wandb import WandbSink

        sinks.append(WandbSink(settings.project, identifier, output_dir, first_step))
    if TRACKIO in settings.report_to:
        from vlm2vec.training.watch.sinks.trackio import TrackioSink

        sinks.append(TrackioSink(settings.project, identifier, output_dir, first_step))
    return Monitor(sinks)
