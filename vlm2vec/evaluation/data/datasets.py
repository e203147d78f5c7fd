"""Reads datasets in MMEB-eval's layout into one table of unique items and, per dataset, indices into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.items import Indices, ItemTable, ItemTableBuilder
from vlm2vec.evaluation.data.selection import benchmark_of, select
from vlm2vec.evaluation.naming import Thing, ThingError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer_file
from vlm2vec.formats.tables import UNREADABLE_TABLE, check_names, is_text, num_rows, texts, unused_columns
from vlm2vec.messages.progress import progress_bar
from vlm2vec.mmeb import Benchmark

COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
# Rows read at a time: rows may have a thousand candidates each.
_READ_ROWS = 64


@dataclass(frozen=True)
class EvalRows:
    """One dataset: for each row the query's item and the candidates' items, the target first.

    Attributes:
        name: Name of the dataset.
        queries: Item of each row's query, int32 (rows,).
        candidates: Items of all rows' candidates, concatenated, int32 (entries,).
        offsets: Row r has `candidates[offsets[r]:offsets[r + 1]]`, int64 (rows + 1,).
        unused_columns: Columns of the files that are not used, for a warning.
    """

    name: str
    queries: Indices
    candidates: Indices
    offsets: npt.NDArray[np.int64]
    unused_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.queries)

    def of_row(self, row: int) -> Indices:
        """The candidates of a row."""
        return self.candidates[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class EvalData:
    """What is scored: the datasets, their unique items, and their benchmark (None if unknown)."""

    datasets: tuple[EvalRows, ...]
    items: ItemTable
    benchmark: Benchmark | None


def read_data(
    dataset_name: str, selections: Sequence[str], split: str = "test", benchmark_name: str = "auto"
) -> tuple[EvalData, list[str]]:
    """Reads the selected datasets of a folder or Hugging Face repository.

    Args:
        dataset_name: A folder in MMEB-eval's layout, or the repository's name.
        selections: See `select`.
        split: The files' split.
        benchmark_name: See `benchmark_of`.

    Returns:
        The data, and the datasets that the benchmark lists for a chosen group but the folder lacks.

    Raises:
        InputError: See `find_datasets`, `select` and `read_dataset`.
    """
    found = find_datasets(resolve_datasets(dataset_name, split), split)
    benchmark = benchmark_of(benchmark_name, found)
    names, absent = select(selections, found, benchmark)
    builder = ItemTableBuilder()
    datasets = []
    with progress_bar(len(names), "read", "dataset") as progress:
        for name in names:
            datasets.append(read_dataset(name, found[name], builder))
            progress.update()
    return EvalData(tuple(datasets), builder.build(), benchmark), absent


def resolve_datasets(name: str, split: str) -> Path:
    """Returns a local folder as it is; downloads the split's parquet files of a Hugging Face dataset.

    Raises:
        InputError: It is neither a folder nor a reachable dataset.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ThingError(Thing.DATASET, f"{name}: no such folder")
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=f"*/{split}-*.parquet"))
    except Exception as error:  # the hub's client has an error type each for offline, unknown, gated and malformed
        reason = " ".join(str(error).split())
        raise ThingError(Thing.DATASET, f"{name}: no such folder, nor a dataset on the hub ({reason})") from error


def find_datasets(folder: Path, split: str) -> dict[str, list[Path]]:
    """Names and parquet parts of the datasets in `folder`: every sub-folder with `<split>-<i>-of-<n>.parquet`.

    Raises:
        InputError: There is no dataset, or parts of one are missing (a partial download).
    """
    pattern = re.compile(rf"{re.escape(split)}-\d+-of-\d+\.parquet")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        parts = sorted(path for path in entry.iterdir() if pattern.fullmatch(path.name))
        if not parts:
            continue
        total = int(parts[0].stem.rsplit("-", 1)[1])
        if [path.stem for path in parts] != [f"{split}-{part:05d}-of-{total:05d}" for part in range(total)]:
            raise InputError(
                f"{entry}: the parts of split {split} are not 0 to {total - 1} of {total}; download the rest"
            )
        found[entry.name] = parts
    if not found:
        raise InputError(f"{folder}: no dataset with a {split}-*.parquet file; is it a folder in MMEB-eval's layout?")
    return found


def read_dataset(name: str, parts: Sequence[Path], items: ItemTableBuilder) -> EvalRows:
    """Reads one dataset and adds its items to `items`.

    `tgt_text` is a list aligned with `tgt_img_path`, or one string that applies to all images (in some datasets of
    MMEB-eval); null means absent, as "" does.

    Raises:
        InputError: A file is not parquet; a column is missing, duplicated or not text; there is no row; a row has no
            candidates or lists of different lengths.
    """
    unused = tuple(dict.fromkeys(column for path in parts for column in _check_columns(path)))
    queries: list[Indices] = []
    candidates: list[Indices] = []
    counts: list[npt.NDArray[np.int64]] = []
    for path in parts:
        items.start_file(str(path))
        first_row = 0
        for batch in _read_batches(path):
            rows = np.arange(first_row, first_row + batch.num_rows)
            first_row += batch.num_rows
            query_text, query_image = (_strings(batch.column(column), path) for column in COLUMNS[:2])
            queries.append(items.add(query_text, query_image, rows))
            target_text, target_image, lengths = _candidates(batch, path, rows)
            candidates.append(items.add(target_text, target_image, np.repeat(rows, lengths)))
            counts.append(lengths)
    if not queries:
        raise InputError(f"{parts[0]}: no rows")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return EvalRows(name, np.concatenate(queries), np.concatenate(candidates), offsets, unused)


def _check_columns(path: Path) -> tuple[str, ...]:
    """Checks that a file has the four columns, and returns its unused ones."""
    try:
        with pq.ParquetFile(path) as file:
            num_rows(file)
            check_names(path, file.schema_arrow, COLUMNS)
            for name in COLUMNS:
                kind = file.schema_arrow.field(name).type
                element = kind.value_type if name in COLUMNS[2:] and _is_list(kind) else kind
                if not is_text(element):
                    wanted = "text or lists of text" if name in COLUMNS[2:] else "text"
                    raise InputError(f"{path}: column {name} is {kind}, not {wanted}")
            return unused_columns(path, file, COLUMNS)
    except UNREADABLE_TABLE as error:
        raise _unreadable(path, error) from error


def _is_list(kind: pa.DataType) -> bool:
    checks = ("list", "large_list", "list_view", "large_list_view", "fixed_size_list")
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def _unreadable(path: Path, error: Exception) -> InputError:
    if is_lfs_pointer_file(path):
        return InputError(f"{path}: {LFS_REMEDY}")
    return InputError(f"{path}: cannot read it as parquet ({' '.join(str(error).split())})")


def _read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=list(COLUMNS)):
                if batch.num_rows:
                    batch.validate(full=True)
                    yield batch.select(list(COLUMNS))
    except UNREADABLE_TABLE as error:
        raise _unreadable(path, error) from error


def _candidates(
    batch: pa.RecordBatch, path: Path, rows: npt.NDArray[np.int64]
) -> tuple[pa.Array, pa.Array, npt.NDArray[np.int64]]:
    """Texts and images of all rows' candidates, concatenated, and the number of candidates per row."""
    columns = batch.column("tgt_text"), batch.column("tgt_img_path")
    if all(pa.types.is_list(column.type) or pa.types.is_large_list(column.type) for column in columns):
        lengths = [pc.list_value_length(column) for column in columns]
        if not any(length.null_count for length in lengths) and lengths[0].equals(lengths[1]):
            counts = lengths[0].to_numpy().astype(np.int64)
            if counts.min() > 0:
                flat_texts, flat_images = (_strings(column.flatten(), path) for column in columns)
                return flat_texts, flat_images, counts
    pairs: list[tuple[Any, Any]] = []
    counts = np.zeros(batch.num_rows, dtype=np.int64)
    for position, (text, image) in enumerate(zip(*(column.to_pylist() for column in columns), strict=True)):
        of_row = _pairs(text, image, f"{path} row {rows[position]}")
        counts[position] = len(of_row)
        pairs += of_row
    paired_texts, paired_images = (
        [_text(pair[side], f"{path} row {row}") for pair, row in zip(pairs, np.repeat(rows, counts), strict=True)]
        for side in (0, 1)
    )
    return pa.array(paired_texts, pa.large_string()), pa.array(paired_images, pa.large_string()), counts


def _pairs(text: Any, image: Any, use: str) -> list[tuple[Any, Any]]:
    """One row's candidates if the two columns are not simply lists of the same length."""
    if isinstance(text, list) and image in (None, "", b""):
        image = [""] * len(text)
    if not isinstance(image, list):
        image = [image]
    if not isinstance(text, list):
        text = [text] * len(image)
    if len(text) != len(image):
        raise InputError(f"{use}: {len(text)} entries in tgt_text but {len(image)} in tgt_img_path")
    if not text:
        raise InputError(f"{use}: no candidates")
    return list(zip(text, image, strict=True))


def _strings(column: pa.Array, path: Path) -> pa.Array:
    """A text column, with "" for null."""
    try:
        return texts(column)
    except pa.ArrowException as error:
        raise _unreadable(path, error) from error


def _text(value: str | bytes | None, use: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else value or ""
    except UnicodeDecodeError as error:
        raise InputError(f"{use}: {value!r} is not UTF-8") from error
