"""Weights & Biases: the metrics under the names that TensorBoard has. `WANDB_MODE=offline` needs no network."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError, printable
from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.sinks.sink import RunCard, Scores, Sink
from vlm2vec.training.watch.sinks.tags import tagged, tagged_figures

# The horizontal axis. wandb's own counter cannot go back to the step of a checkpoint.
_STEP = "step"


class WandbSink(Sink):
    """Sends metrics to a server, or writes them below a run's folder.

    A resumed run continues the curves of its folder's run; steps that a killed start has reported are reported again,
    as further points at the same steps.

    Args:
        project: The project.
        run_id: The run's id, the same at each of its starts.
        output_dir: The run's folder; `wandb/` is in it.
        first_step: Steps done before this start.

    Raises:
        InputError: Nobody is logged in, or the server does not answer.
    """

    is_optional = True

    def __init__(self, project: str, run_id: str, output_dir: Path, first_step: int) -> None:
        import wandb

        self._wandb: Any = wandb
        self._first_step = first_step
        self._exit_code = 1
        is_offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
        remedy = "or run with WANDB_MODE=offline and send the metrics later (wandb sync)"
        # Asked for in a terminal, the key would keep all other ranks waiting.
        if not is_offline and not wandb.login(prompt=False, verify=False):
            raise InputError(f"--report_to wandb: no API key is known; run wandb login, {remedy}")
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                name=output_dir.resolve().name,
                dir=str(output_dir),
                resume=None if is_offline else "allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise InputError(f"--report_to wandb: {' '.join(str(error).split())}; fix it, {remedy}") from error
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        folder = shlex.quote(str(output_dir / "wandb"))
        self.hint = f"wandb: wandb sync {folder}/offline-run-*" if is_offline else f"wandb: {self._run.url}"

    def begin(self, card: RunCard) -> None:
        """Sends flags and facts as the run's configuration."""
        config = {**card.flags, **card.comparable, "run": dict(card.facts)}
        self._run.config.update(config, allow_val_change=True)  # type: ignore[no-untyped-call]

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """Sends the images, with the texts below."""
        images = [
            self._wandb.Image(pair.image, caption=printable(f"{pair.name}\n{pair.query}\n-> {pair.positive}"))
            for pair in pairs
            if pair.image is not None
        ]
        if images:
            self._log(self._first_step, {"pairs": images})

    def figures(self, step: int, figures: Figures) -> None:
        """Sends one interval."""
        self._log(step, tagged_figures(figures, self._wandb.Histogram))

    def scores(self, step: int, scores: Scores) -> None:
        """Sends one evaluation."""
        self._log(step, tagged(scores.values))

    def bad_sample(self, step: int, reason: str) -> None:
        """Sends what is wrong with a sample."""
        text = f"<pre>{html.escape(printable(reason))}</pre>"
        self._log(step + 1, {"data/bad_sample": self._wandb.Html(text)})

    def done(self) -> None:
        """The run ends well."""
        self._exit_code = 0

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=self._exit_code)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({_STEP: step, **values})
