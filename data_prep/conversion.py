"""Turns ranges of source rows into shards; every range is a task of its own, independent of all others."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.pictures import CheckedPictures, PictureSource, UnusableImageError
from data_prep.source import SourceTable
from vlm2vec.files import sha256_of
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, shard_name
from vlm2vec.shards.writer import UNUSABLE_IMAGES, ShardWriter, StoredItem

# The columns of each side: text, path of the picture.
SIDE_COLUMNS = {
    QUERY: ("qry", "qry_image_path"),
    POSITIVE: ("pos_text", "pos_image_path"),
    NEGATIVE: ("neg_text", "neg_image_path"),
}


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: a fixed range of rows (first, end) of one table, whatever happens to its rows.

    Attributes:
        subset: its name.
        number: of the shard in its subset.
        table: the source.
        rows: first row and end of the range.
        image_dir: what the table's picture paths are relative to.
        output_dir: the data set's folder.
        check_images: a key of `pictures.CHECKS`.
    """

    subset: str
    number: int
    table: SourceTable
    rows: tuple[int, int]
    image_dir: Path
    output_dir: Path
    check_images: str

    @property
    def stem(self) -> Path:
        """The shard's path without a suffix."""
        return self.output_dir / self.subset / shard_name(self.subset, self.number)


@dataclass(frozen=True)
class ShardResult:
    """A committed shard.

    Attributes:
        record: what the manifest says about it.
        unusable_images: each picture that rows were left out for: its path, the problem, the reason, the first row.
    """

    record: ShardRecord
    unusable_images: tuple[dict[str, Any], ...]


def make_shard(task: ShardTask) -> ShardResult:
    """The shard, as an earlier run committed it or written now."""
    return _committed_shard(task) or write_shard(task)


def write_shard(task: ShardTask) -> ShardResult:
    """Writes one shard; it appears complete or not at all. A row with a picture that cannot be used is left out.

    Raises:
        InputError: the table is damaged.
    """
    pictures = CheckedPictures(PictureSource(task.image_dir, task.subset), task.check_images)
    skipped: Counter[str] = Counter()
    unusable: dict[str, dict[str, Any]] = {}
    with ShardWriter(task.stem.parent, task.stem.name, task.subset) as shard:
        for row, record in task.table.rows(*task.rows):
            empty = _empty_side(record)
            if empty:
                skipped[f"empty {empty}"] += 1
                continue
            try:
                shard.add(row, _sides(record, pictures))
            except UnusableImageError as error:
                skipped[error.problem] += 1
                unusable.setdefault(
                    error.path, {"path": error.path, "problem": error.problem, "reason": str(error), "row": row}
                )
        return ShardResult(shard.commit(task.rows, skipped, list(unusable.values())), tuple(unusable.values()))


def _committed_shard(task: ShardTask) -> ShardResult | None:
    """The shard as an earlier run committed it; None if it must be written (again).

    It must if rows were left out for a picture, which may be there by now, and if a picture has changed since. (A
    changed table or zip is refused before, by the plan.)
    """
    sidecar_path = task.stem.with_suffix(".json")
    try:
        committed_ns = sidecar_path.stat().st_mtime_ns
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        unusable = sidecar.pop(UNUSABLE_IMAGES)
        record = ShardRecord(**{**sidecar, "rows": tuple(sidecar["rows"])})
        same_size = task.stem.with_suffix(".tar").stat().st_size == record.bytes
        same_index = sha256_of(task.stem.with_suffix(".parquet")) == record.index_sha256
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if (record.name, record.rows) != (task.stem.name, task.rows) or unusable or not (same_size and same_index):
        return None
    if any(_changed_since(committed_ns, task.image_dir / path) for path in _image_paths(task)):
        return None
    return ShardResult(record, ())


def _image_paths(task: ShardTask) -> set[str]:
    columns = [path for _, path in SIDE_COLUMNS.values()]
    return {record[name] for _, record in task.table.rows(*task.rows) for name in columns if record.get(name)}


def _changed_since(time_ns: int, path: Path) -> bool:
    """Whether the file was written, replaced or renamed after that time, whatever time it claims for itself."""
    try:
        return path.stat().st_ctime_ns >= time_ns
    except (OSError, ValueError):  # in the zip, or its row was left out
        return False


def _empty_side(record: dict[str, str]) -> str | None:
    """Rows without a query or without a target cannot be trained on (the original puts a dummy text in their place)."""
    for side in (QUERY, POSITIVE):
        text, path = (record[column] for column in SIDE_COLUMNS[side])
        if not text.strip() and not path:
            return side
    return None


def _sides(record: dict[str, str], pictures: CheckedPictures) -> dict[str, StoredItem]:
    sides: dict[str, StoredItem] = {}
    for side, columns in SIDE_COLUMNS.items():
        text, path = (record.get(column, "") for column in columns)
        if side != NEGATIVE or text.strip() or path:
            sides[side] = StoredItem(text, pictures.load(path) if path else None)
    return sides
