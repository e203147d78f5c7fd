"""TensorBoard: curves in groups, histograms, the first pairs as images, the configuration, and runs to compare."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm2vec.errors import printable
from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures, histogram_edges
from vlm2vec.training.watch.parts import STEP_PARTS
from vlm2vec.training.watch.sinks.markdown import configuration_text, escaped, table
from vlm2vec.training.watch.sinks.sink import Comparable, RunCard, Scores, Sink
from vlm2vec.training.watch.sinks.tags import tag_of

FOLDER = "tensorboard"
# What the page HPARAMS shows of each run: their last values. A run that is not scored has no `eval/`.
_COMPARED_METRICS = ("loss", "hit@1", "similarity/hardest_negative", "pairs_per_second", "peak_memory_gib")
_COMPARED_SCORES = ("eval/overall",)
_SIMILARITIES = ("similarity/positive", "similarity/hardest_negative", "similarity/mean_negative")


class TensorBoardSink(Sink):
    """Writes event files below a run's folder.

    Args:
        output_dir: The run's folder.
        first_step: Steps done before this start; TensorBoard drops what a killed start has written of later ones.
    """

    def __init__(self, output_dir: Path, first_step: int) -> None:
        # Imported here: it takes a second that the other ranks need not spend.
        from torch.utils.tensorboard import SummaryWriter

        self._first_step = first_step
        self.hint = f"Curves: tensorboard --logdir {shlex.quote(str(output_dir))}"
        self._writer = SummaryWriter(str(output_dir / FOLDER), purge_step=first_step + 1)

    def begin(self, card: RunCard) -> None:
        """Writes the configuration as text and for the page HPARAMS, and the charts of several curves."""
        self._writer.add_text("configuration", printable(configuration_text(card)), self._first_step)
        self._add_comparison(card.comparable)
        times = [tag_of(f"time_ms/{part.value}") for part in STEP_PARTS]
        similarities = [tag_of(name) for name in _SIMILARITIES]
        layout = {
            "similarity": {"query with target, hardest and mean negative": ["Multiline", similarities]},
            "time": {"milliseconds of a step by part": ["Multiline", times]},
        }
        self._writer.add_custom_scalars(layout)
        self._writer.flush()

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """Writes texts and images."""
        cells = [[str(n), each.subset, each.query, each.positive] for n, each in enumerate(pairs, 1)]
        text = table(["#", "subset", "query", "target"], [[escaped(cell) for cell in row] for row in cells])
        self._writer.add_text("pairs", printable(text), self._first_step)
        for number, pair in enumerate(pairs, 1):
            if pair.image is not None:
                tag = f"pairs/{number}_{pair.subset}"
                self._writer.add_image(tag, pair.image, self._first_step, dataformats="HWC")
        self._writer.flush()

    def figures(self, step: int, figures: Figures) -> None:
        """Writes one interval."""
        self._add_scalars(step, figures.values)
        for name, counts in figures.histograms.items():
            self._add_histogram(tag_of(name), counts, step)
        self._writer.flush()

    def scores(self, step: int, scores: Scores) -> None:
        """Writes one evaluation."""
        self._add_scalars(step, scores.values)
        self._writer.flush()

    def bad_sample(self, step: int, reason: str) -> None:
        """Writes what is wrong with a sample."""
        self._writer.add_text("bad_samples", printable(reason), step)

    def done(self) -> None:
        """Marks the run as complete on the page HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        *_, end = hparams({}, {})  # type: ignore[no-untyped-call]
        self._file_writer.add_summary(end)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()

    @property
    def _file_writer(self) -> Any:
        return self._writer._get_file_writer()  # type: ignore[no-untyped-call]

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(tag_of(name), value, step)

    def _add_comparison(self, comparable: Mapping[str, Comparable]) -> None:
        """What `SummaryWriter.add_hparams` does, in this run instead of in one of its own, and from its start on.

        The plugin takes the last value of a metric's curve, so that runs that are not done can be compared, too.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = dict.fromkeys(map(tag_of, (*_COMPARED_METRICS, *_COMPARED_SCORES)), 0.0)
        # The plugin has no columns of booleans.
        values = {
            name: value if type(value) in (int, float) else printable(str(value)) for name, value in comparable.items()
        }
        experiment, start, _ = hparams(values, metrics)  # type: ignore[no-untyped-call]
        self._file_writer.add_summary(experiment)
        self._file_writer.add_summary(start)

    def _add_histogram(self, tag: str, counts: Sequence[int], step: int) -> None:
        """Cosines counted in equal steps from -1 to 1; TensorBoard shows the part that has any."""
        edges = histogram_edges(len(counts))
        filled = np.flatnonzero(counts)
        if not len(filled):
            return
        shown = slice(int(filled[0]), int(filled[-1]) + 1)
        lefts, rights, kept = edges[:-1][shown], edges[1:][shown], np.array(counts)[shown]
        middles = (lefts + rights) / 2
        self._writer.add_histogram_raw(
            tag,
            min=lefts[0],
            max=rights[-1],
            num=kept.sum(),
            sum=(middles * kept).sum(),
            sum_squares=(middles**2 * kept).sum(),
            bucket_limits=rights.tolist(),
            bucket_counts=kept.tolist(),
            global_step=step,
        )
