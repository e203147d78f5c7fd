"""The files of a scored run: written whole or not at all, read back for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.datasets import ItemTable
from eval.scoring import DatasetScore
from vlm2vec.errors import InputError

SCORES_FILE = "scores.json"
_RUN_KEYS = ("model", "benchmark", "num_rows", "num_items", "datasets", "meta_tasks", "overall")
_MODEL_KEYS = ("model_name", "checkpoint_path", "num_crops", "fingerprint")
_DATASET_KEYS = ("meta_task", "distribution", *(field.name for field in fields(DatasetScore)))
_MEAN_KEYS = ("acc", "chance", "num_datasets", "num_datasets_of_benchmark")


def prepare_output(folder: Path) -> None:
    """Creates the folder of a run, before any work that would be lost without it.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create it ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: no permission to write there")


def write_run(
    folder: Path,
    scored: Mapping[str, tuple[DatasetScore, npt.NDArray[np.int64]]],
    items: ItemTable,
    summary: Mapping[str, Any],
) -> None:
    """Writes all files of a run.

    An earlier run's `scores.json` is removed first and the new one comes last: it stands for a finished run, never
    for a mixture of two.

    Args:
        scored: for each dataset its score and the chosen items, as `score_rows` returns them.
        summary: the content of `scores.json`.

    Raises:
        InputError: a file cannot be written.
    """
    prepare_output(folder)
    (folder / SCORES_FILE).unlink(missing_ok=True)
    for name, (score, chosen) in scored.items():
        _write_dataset_files(folder, name, score, chosen, items)
    write_text(folder / SCORES_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_scores(folder: Path) -> dict[str, Any]:
    """Reads a run's `scores.json`.

    Raises:
        InputError: no such folder or file, or a file that `eval.mmeb` did not write.
    """
    path = folder / SCORES_FILE
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no {SCORES_FILE}; write it with python -m eval.mmeb") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read it ({' '.join(str(error).split())})") from error
    if not _is_summary(summary):
        raise InputError(f"{path}: not as python -m eval.mmeb writes it; score the run again")
    return summary


def write_text(path: Path, text: str) -> None:
    """Writes a file so that its name never stands for a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write it ({error.strerror})") from error


def _write_dataset_files(
    folder: Path, name: str, score: DatasetScore, chosen: npt.NDArray[np.int64], items: ItemTable
) -> None:
    """Writes `<name>_score.json` and `<name>_pred.txt` in the original's shape.

    A line of the predictions is the chosen (text, image path) of one row, as Python prints the pair: a line break in
    a text stays escaped.
    """
    lines = [f"{(items.texts[index], items.images[index])}\n" for index in chosen]
    write_text(folder / f"{name}_pred.txt", "".join(lines))
    shape = {"acc": score.acc, "num_correct": score.num_correct, "num_pred": score.num_pred}
    write_text(folder / f"{name}_score.json", json.dumps(shape, indent=4) + "\n")


def _is_summary(summary: Any) -> bool:
    """Whether a JSON value has what the report reads: a foreign file ends in one line, not in a traceback."""
    return (
        _has(summary, _RUN_KEYS)
        and _has(summary["model"], _MODEL_KEYS)
        and _has(summary["overall"], _MEAN_KEYS)
        and _has(summary["datasets"])
        and all(_has(score, _DATASET_KEYS) for score in summary["datasets"].values())
        and _has(summary["meta_tasks"])
        and all(_has(mean, _MEAN_KEYS) for mean in summary["meta_tasks"].values())
    )


def _has(value: Any, keys: Collection[str] = ()) -> bool:
    return isinstance(value, dict) and value.keys() >= set(keys)
