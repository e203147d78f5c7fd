"""Reads the scores that the original's eval.py wrote: `<dataset>_score.json`, which contain accuracy only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from eval.earlier import EMBEDDINGS_FOLDER, SCORE_SUFFIX
from vlm2vec.errors import InputError
from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.data.selection import in_order, listed, recognise
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.evaluation.scores_file import SCORES_FILE, Count, Share
from vlm2vec.formats.json_files import StrictModel, checked, read_json

IS_ORIGINAL = "is_original"


class _Score(StrictModel):
    acc: Share
    num_correct: Count
    num_pred: Annotated[Count, Field(ge=1)]


def is_original(folder: Path) -> bool:
    """Whether a folder contains scores of the original's program, and none of eval.mmeb."""
    ours = (folder / SCORES_FILE).exists() or (folder / EMBEDDINGS_FOLDER).is_dir()
    return not ours and any(folder.glob(f"*{SCORE_SUFFIX}"))


def read_original(folder: Path) -> dict[str, Any]:
    """Reads the scores of the original's program in the form of `scores.json`.

    Values that the original does not write are None: hits, MRR, NDCG, ties, and chance for unknown datasets.

    Raises:
        InputError: The scores are damaged.
    """
    names = {path.name.removesuffix(SCORE_SUFFIX): path for path in sorted(folder.glob(f"*{SCORE_SUFFIX}"))}
    benchmark = recognise(names)
    scores = {}
    for name in in_order(names, benchmark):
        score = _read(names[name])
        chance = benchmark.dataset(name).chance if benchmark and name in listed(benchmark) else math.nan
        scores[name] = DatasetScore(score.acc, score.num_correct, score.num_pred, chance, 0, 0, *[math.nan] * 4)
    summary: dict[str, Any] = _none_for_nan(summarise(scores, benchmark))
    for dataset in summary["datasets"].values():
        dataset |= {"num_tied": None, "num_duplicate_truth": None}
    model = {"model_name": str(folder), "checkpoint_path": None, "fingerprint": None}
    return {"model": model, "num_items": None, "warnings": [], IS_ORIGINAL: True, **summary}


def _read(path: Path) -> _Score:
    score = checked(_Score, read_json(path), path)
    if abs(score.acc * score.num_pred - score.num_correct) > 0.5:
        raise InputError(f"{path}: acc {score.acc} is not {score.num_correct} of {score.num_pred}")
    return score


def _none_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_for_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
