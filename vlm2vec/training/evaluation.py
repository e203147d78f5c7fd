"""Scores during training: when, on what, and which checkpoint is the best so far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.datasets import read_data
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.encoding import BatchSource
from vlm2vec.evaluation.encoding_plan import plan_encoding
from vlm2vec.evaluation.live import LiveEvaluation, ModelCall
from vlm2vec.evaluation.naming import Thing, named_flags
from vlm2vec.files import committed
from vlm2vec.formats.json_files import StrictModel, checked, read_json, with_checksum, without_checksum, write_json
from vlm2vec.images.folder import ImageFolder, links_remedy
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import default_batch_tokens
from vlm2vec.ranks import own_rank, send_from_first
from vlm2vec.training.checkpoints.record import CHECKPOINT_PREFIX
from vlm2vec.training.flags.evaluation import BEST
from vlm2vec.training.settings import EvaluationSettings
from vlm2vec.training.watch.monitor import Monitor

# Of a score that is kept: what a mean's rounding changes behind them would make equal scores differ.
_DIGITS = 9
_FLAGS = {Thing.DATASET: "--eval_dataset_name", Thing.SUBSET: "--eval_subsets", Thing.IMAGES: "--eval_image_dir"}


class NoEvaluation:
    """For a run that is not scored."""

    def after_step(self, engine: Any, done: int, is_last: bool, monitor: Monitor) -> bool:
        """Never the best."""
        return False

    def keep(self, checkpoint: Path) -> None:
        """Nothing."""


class RunEvaluation:
    """Scores a run every so many steps and remembers its best checkpoint, also over a resume.

    Args:
        live: scores the weights.
        model_call: one engine call.
        every: steps from one evaluation to the next.
        output_dir: the run's folder; the best checkpoint's name and score stand in its best.json.
        save_best: whether the best so far is to be kept.
    """

    def __init__(
        self,
        live: LiveEvaluation,
        model_call: ModelCall,
        every: int,
        output_dir: Path,
        save_best: bool,
    ) -> None:
        self._live = live
        self._model_call = model_call
        self._every = every
        self._output_dir = output_dir
        self._save_best = save_best
        best = read_best(output_dir)
        self._best = best.score if best else -math.inf
        self._last = -math.inf

    def after_step(self, engine: Any, done: int, is_last: bool, monitor: Monitor) -> bool:
        """Scores after `done` steps, if it is time to; all ranks call it.

        Returns:
            Whether a checkpoint of these weights is to be written because they are the best so far.
        """
        if done % self._every and not is_last:
            return False
        summary = self._live(engine, self._model_call)
        if summary is not None:
            monitor.scores(done, summary)
        elif own_rank() == 0:
            monitor.message(f"evaluation after {done} steps: NaN or infinity in the embeddings; no score")
        score = send_from_first(None if summary is None else summary["overall"]["acc"], float | None)
        self._last = -math.inf if score is None else round(score, _DIGITS)
        return self._save_best and self._last > self._best

    def keep(self, checkpoint: Path) -> None:
        """Notes that the checkpoint, just written, is the best so far; all ranks call it."""
        self._best = self._last
        if own_rank() == 0:
            with committed(self._output_dir / BEST) as path:
                write_json(path, with_checksum({"checkpoint": checkpoint.name, "score": self._best}))


class Best(StrictModel):
    """What best.json says."""

    checkpoint: Annotated[str, Field(pattern=rf"^{CHECKPOINT_PREFIX}[0-9]+$")]
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def read_best(output_dir: Path) -> Best | None:
    """The name and score of a run's best checkpoint; None if there is none (any more).

    Raises:
        InputError: a damaged file.
    """
    path = output_dir / BEST
    if not path.exists():
        return None
    try:
        best = checked(Best, without_checksum(read_json(path), path), path)
    except InputError as error:
        raise InputError(f"{error}; remove it") from error
    return best if (output_dir / best.checkpoint).is_dir() else None


def best_checkpoint(output_dir: Path) -> str | None:
    """The name of a run's best checkpoint, if it has one."""
    best = read_best(output_dir)
    return best.checkpoint if best else None


def build_evaluation(
    settings: EvaluationSettings | None,
    output_dir: Path,
    inputs: ItemEncoderInputs,
    model_call: ModelCall,
    num_workers: int,
    device: torch.device,
) -> RunEvaluation | NoEvaluation:
    """Reads and plans what a run is scored on, before it starts.

    Raises:
        InputError: a dataset or image that cannot be used.
    """
    if settings is None:
        return NoEvaluation()
    with named_flags(_FLAGS):
        data, _ = read_data(settings.dataset_name, settings.subsets)
    folder = ImageFolder(settings.image_dir, settings.allow_links)
    with named_flags(_FLAGS), links_remedy("--eval_allow_links"):
        images = scan_images(data.items, folder)
    plan = plan_encoding(data.items, images, inputs, default_batch_tokens(device))
    live = LiveEvaluation(data, BatchSource(data.items, plan, folder, inputs), inputs.padding_chunk(), num_workers)
    return RunEvaluation(live, model_call, settings.every, output_dir, settings.saves_best)
