"""Evaluation during training: scores the weights at intervals and tracks the best checkpoint."""

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

# Digits of a stored score; the rounding errors of a mean beyond them would make equal scores differ.
_DIGITS = 9
_FLAGS = {Thing.DATASET: "--eval_dataset_name", Thing.SUBSET: "--eval_subsets", Thing.IMAGES: "--eval_image_dir"}


class NoEvaluation:
    """Null object for a run without evaluation."""

    def after_step(self, engine: Any, done: int, is_last: bool, monitor: Monitor) -> bool:
        """Returns False: no checkpoint is the best."""
        return False

    def keep(self, checkpoint: Path) -> None:
        """Does nothing."""


class RunEvaluation:
    """Scores a run at a fixed interval of steps and tracks its best checkpoint, also across a resume.

    Args:
        live: Scores the weights.
        model_call: Runs one engine call.
        every: Interval between evaluations in steps.
        output_dir: The run's folder; its best.json holds the best checkpoint's name and score.
        save_best: Whether to keep the best checkpoint.
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
        """Scores after `done` steps, if an evaluation is due; all ranks call it.

        Returns:
            Whether to write a checkpoint because these weights are the best so far.
        """
        if done % self._every and not is_last:
            return False
        summary = self._live(engine, self._model_call)
        if summary is not None:
            monitor.scores(done, summary)
        elif own_rank() == 0:
            monitor.message(f"evaluation after {done} steps: no score, the embeddings hold NaN or infinity")
        score = send_from_first(None if summary is None else summary["overall"]["acc"], float | None)
        self._last = -math.inf if score is None else round(score, _DIGITS)
        return self._save_best and self._last > self._best

    def keep(self, checkpoint: Path) -> None:
        """Records that the checkpoint just written is the best so far; all ranks call it."""
        self._best = self._last
        if own_rank() == 0:
            with committed(self._output_dir / BEST) as path:
                write_json(path, with_checksum({"checkpoint": checkpoint.name, "score": self._best}))


class Best(StrictModel):
    """Content of best.json."""

    checkpoint: Annotated[str, Field(pattern=rf"^{CHECKPOINT_PREFIX}[0-9]+$")]
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def read_best(output_dir: Path) -> Best | None:
    """Name and score of a run's best checkpoint; None if there is none, or if it was removed.

    Raises:
        InputError: The file is damaged.
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
    """Name of a run's best checkpoint, if it has one."""
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
    """Reads the evaluation data and plans its encoding, before the run starts.

    Raises:
        InputError: A dataset or an image cannot be used.
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
