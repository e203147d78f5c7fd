"""The files of a scored run: written whole or not at all, read back for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.evaluation.metrics import METRICS, DatasetScore
from vlm2vec.evaluation.scoring import score_of_table
from vlm2vec.evaluation.summary import summarise
from vlm2vec.files import committed
from vlm2vec.mmeb import Benchmark

SCORES_FILE = "scores.json"
PREDICTIONS_FILE = "predictions.parquet"
_RUN_KEYS = ("model", "warnings", "benchmark", "num_rows", "num_items", "datasets", "meta_tasks", "overall")
_MODEL_KEYS = ("model_name", "checkpoint_path", "num_crops", "fingerprint")
_DATASET_KEYS = ("meta_task", "distribution", "acc_interval", *(field.name for field in fields(DatasetScore)))
_MEAN_KEYS = ("acc", "acc_interval", "chance", *METRICS, "num_datasets", "num_datasets_of_benchmark")


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
    folder: Path, parts: Mapping[str, Path], about: Mapping[str, Any], benchmark: Benchmark | None
) -> dict[str, Any]:
    """Writes all files of a run.

    An earlier run's `scores.json` is removed first and the new one comes last: it stands for a finished run, never
    for a mixture of two.

    Args:
        folder: of the run.
        parts: for each dataset the file of its ranked rows, as `predictions_table` makes them.
        about: the run's part of `scores.json`.
        benchmark: the datasets belong to.

    Returns:
        The content of `scores.json`.

    Raises:
        InputError: a file cannot be written.
    """
    prepare_output(folder)
    (folder / SCORES_FILE).unlink(missing_ok=True)
    scores: dict[str, DatasetScore] = {}
    try:
        with committed(folder / PREDICTIONS_FILE) as path, ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for name, part in parts.items():
                table = pq.read_table(part)
                writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
                writer.write_table(table)
                scores[name] = score_of_table(table)
                _write_dataset_files(folder, name, scores[name], table)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror})") from error
    summary = {**about, **summarise(scores, benchmark)}
    write_text(folder / SCORES_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def read_predictions(folder: Path, name: str) -> pa.Table:
    """A dataset's part of a run's `predictions.parquet`.

    Raises:
        InputError: no such file, or one that `eval.mmeb` did not write.
    """
    path = folder / PREDICTIONS_FILE
    try:
        return pq.read_table(path, filters=[("dataset", "=", name)])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read it ({' '.join(str(error).split())})") from error


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


def _write_dataset_files(folder: Path, name: str, score: DatasetScore, table: pa.Table) -> None:
    """Writes `<name>_score.json` and `<name>_pred.txt` in the original's shape.

    A line of the predictions is the chosen (text, image path) of one row, as Python prints the pair: a line break in
    a text stays escaped.
    """
    chosen = (table[column].to_pylist() for column in ("top_text", "top_image"))
    lines = [f"{(texts[0], images[0])}\n" for texts, images in zip(*chosen, strict=True)]
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
