"""Trackio: the metrics under the names that TensorBoard has, in a database of this machine (`TRACKIO_DIR`)."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError, printable
from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.sinks.markdown import configuration_text
from vlm2vec.training.watch.sinks.sink import RunCard, Scores, Sink
from vlm2vec.training.watch.sinks.tags import tagged, tagged_figures


class TrackioSink(Sink):
    """Writes metrics to Trackio's database, or to the Space or server that its variables name.

    A resumed run continues the curves of its folder's run; steps that a killed start has reported are reported again,
    as further points at the same steps.

    Args:
        project: The project.
        run_id: The run's id, the same at each of its starts.
        output_dir: The run's folder.
        first_step: Steps done before this start.

    Raises:
        InputError: The database cannot be written, or the Space or server cannot be used.
    """

    is_optional = True

    def __init__(self, project: str, run_id: str, output_dir: Path, first_step: int) -> None:
        import trackio

        self._trackio: Any = trackio
        self._first_step = first_step
        # Trackio knows a run by its name.
        name = f"{output_dir.resolve().name}-{run_id}"
        try:
            with redirect_stdout(io.StringIO()):  # a greeting of five lines; `hint` says how to look at the run
                self._run: Any = trackio.init(
                    project=project, name=name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
                )
        except Exception as error:  # of its database, of the hub, of the network
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"--report_to trackio: cannot start ({reason}); fix it, or leave trackio out") from error
        self.hint = f"trackio: trackio show --project {shlex.quote(project)}"

    def begin(self, card: RunCard) -> None:
        """Writes flags as the run's configuration, and facts and flags as a text of its report."""
        self._run.config.update(self._trackio.utils.to_json_safe({**card.flags, **card.comparable}))
        self._log(self._first_step, {"configuration": self._trackio.Markdown(printable(configuration_text(card)))})

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """Writes the images, with the texts below."""
        for number, pair in enumerate(pairs, 1):
            if pair.image is not None:
                caption = printable(f"{pair.name}: {pair.query} -> {pair.positive}")
                image = self._trackio.Image(pair.image, caption=caption)
                self._log(self._first_step, {f"pairs/{number}_{pair.subset}": image})

    def figures(self, step: int, figures: Figures) -> None:
        """Writes one interval."""
        self._log(step, tagged_figures(figures, self._trackio.Histogram))

    def scores(self, step: int, scores: Scores) -> None:
        """Writes one evaluation."""
        self._log(step, tagged(scores.values))

    def bad_sample(self, step: int, reason: str) -> None:
        """Writes what is wrong with a sample."""
        self._log(step + 1, {"data/bad_sample": self._trackio.Markdown(printable(reason))})

    def close(self) -> None:
        """Writes what is left."""
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)
