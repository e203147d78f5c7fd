"""Writes the files of a scored run, each completely or not at all, and reads them for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.earlier import common_benchmark, earlier_scores, refuse_other
from eval.original import is_original, read_original
from vlm2vec.errors import InputError
from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.data.selection import in_order
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.evaluation.scores_file import SCORES_FILE, read_summary, scores_text
from vlm2vec.evaluation.scoring import PREDICTIONS_SCHEMA, TOP, score_of_table
from vlm2vec.files import committed
from vlm2vec.mmeb import Benchmark

PREDICTIONS_FILE = "predictions.parquet"
# Fields of a dataset in `scores.json` that are not scores: where its rows come from, and their digest.
SOURCE_KEYS = ("data", "dataset_split", "image_dir")
_SCORE_FIELDS = tuple(field.name for field in fields(DatasetScore))


def prepare_output(folder: Path) -> None:
    """Creates the folder of a run, before any work that would be lost without it.

    Raises:
        InputError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create it ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: no permission to write there")


def write_run(
    folder: Path,
    parts: Mapping[str, Path],
    about: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, str]],
    benchmark: Benchmark | None,
) -> dict[str, Any]:
    """Writes all files of a run, and keeps the datasets that the folder already has.

    `predictions.parquet` is written first and `scores.json` last. A kill in between leaves the earlier scores, whose
    rows the new predictions contain too.

    Args:
        folder: The run's folder.
        parts: For each dataset the file of its ranked rows, as `predictions_table` makes them.
        about: The run's part of `scores.json`.
        sources: For each dataset, where its rows come from, and their digest.
        benchmark: The benchmark to which the datasets belong.

    Returns:
        The content of `scores.json`.

    Raises:
        InputError: A file cannot be written, or the folder contains scores to which this run cannot be added.
    """
    prepare_output(folder)
    earlier = earlier_scores(folder, parts)
    if earlier is not None:
        refuse_other(folder, earlier, about, sources, benchmark)
        benchmark = common_benchmark(folder, earlier, benchmark, parts)
    kept = {name: score for name, score in (earlier or {"datasets": {}})["datasets"].items() if name not in parts}
    scores = {name: DatasetScore(**{key: score[key] for key in _SCORE_FIELDS}) for name, score in kept.items()}
    try:
        with committed(folder / PREDICTIONS_FILE) as path, ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for name in in_order({**kept, **parts}, benchmark):
                table = pq.read_table(parts[name]) if name in parts else read_predictions(folder, name, kept[name])
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
                    stack.enter_context(writer)
                writer.write_table(table)
                if name in parts:
                    scores[name] = score_of_table(table)
                    _write_dataset_files(folder, name, scores[name], table)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror})") from error
    summary = {**about, **summarise({name: scores[name] for name in in_order(scores, benchmark)}, benchmark)}
    for name, dataset in summary["datasets"].items():
        dataset |= sources[name] if name in parts else {key: kept[name].get(key, "") for key in SOURCE_KEYS}
    if earlier is not None:
        summary |= _joined(earlier, about, parts)
    write_text(folder / SCORES_FILE, scores_text(summary))
    return summary


def _joined(earlier: Mapping[str, Any], about: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The part of `scores.json` about earlier and new datasets together, without their scores."""
    before = set(earlier["datasets"])
    # The number of distinct items of both together is known only if one run covers the other.
    num_items = about["num_items"] if before <= set(names) else earlier["num_items"] if before >= set(names) else None
    old = [line for line in earlier["warnings"] if line.partition(": ")[0] not in names]
    return {"num_items": num_items, "warnings": list(dict.fromkeys([*old, *about["warnings"]]))}


def read_scores(folder: Path) -> dict[str, Any]:
    """Reads the scores that `eval.mmeb` or the original's program wrote, in the form of `scores.json`.

    Raises:
        InputError: There is no such folder, or its scores are missing or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return read_original(folder) if is_original(folder) else read_summary(folder)


def read_predictions(folder: Path, name: str, score: Mapping[str, Any]) -> pa.Table:
    """Reads a dataset's part of a run's `predictions.parquet`.

    Args:
        folder: The run's folder.
        name: The dataset's name.
        score: The dataset's part of the run's `scores.json`.

    Raises:
        InputError: The file is missing, damaged, or does not match the scores.
    """
    path = folder / PREDICTIONS_FILE
    try:
        table = pq.read_table(path, filters=[("dataset", "=", name)], page_checksum_verification=True)
        table = table.select(PREDICTIONS_SCHEMA.names).cast(PREDICTIONS_SCHEMA).combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot read it ({' '.join(str(error).split())})") from error
    # Scores without a digest of their rows are from an older version or written by hand: only the shape is checked.
    if not _is_ranking(table) or (score.get("data") and not _is_score_of(table, score)):
        raise InputError(f"{path}: does not match {SCORES_FILE} for {name}; score the run again")
    return table


def _is_ranking(table: pa.Table) -> bool:
    """Whether every row has a rank among its candidates, and everything that a report shows."""
    if any(table[name].null_count for name in table.column_names):
        return False
    ranks, candidates = (table[name].to_numpy() for name in ("rank", "num_candidates"))
    best = table["top_score"].combine_chunks().flatten().is_valid().to_numpy(zero_copy_only=False)[::TOP]
    return bool((ranks >= 1).all() and (ranks <= candidates).all() and best.all())


def _is_score_of(table: pa.Table, score: Mapping[str, Any]) -> bool:
    return len(table) == score["num_pred"] and asdict(score_of_table(table)) == {
        key: score[key] for key in _SCORE_FIELDS
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file that gets its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write it ({error.strerror})") from error


def _write_dataset_files(folder: Path, name: str, score: DatasetScore, table: pa.Table) -> None:
    """Writes `<name>_score.json` and `<name>_pred.txt` in the original's format.

    Each line of the predictions is the chosen (text, image path) of one row, as Python prints the pair, so line breaks
    in a text are escaped.
    """
    chosen = (table[column].to_pylist() for column in ("top_text", "top_image"))
    lines = [f"{(texts[0], images[0])}\n" for texts, images in zip(*chosen, strict=True)]
    write_text(folder / f"{name}_pred.txt", "".join(lines))
    shape = {"acc": score.acc, "num_correct": score.num_correct, "num_pred": score.num_pred}
    write_text(folder / f"{name}_score.json", json.dumps(shape, indent=4) + "\n")
