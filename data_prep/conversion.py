"""Turns ranges of source rows into shards; every range is a task of its own, independent of all others."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.source import SourceTable
from vlm2vec.errors import InputError
from vlm2vec.image_folder import ImageFolder
from vlm2vec.images import ImageHeader, open_image, read_header
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, Item, shard_name
from vlm2vec.shards.writer import ShardWriter, StoredItem

# The columns of each side: text, path of the picture.
SIDE_COLUMNS = {
    QUERY: ("qry", "qry_image_path"),
    POSITIVE: ("pos_text", "pos_image_path"),
    NEGATIVE: ("neg_text", "neg_image_path"),
}


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: a fixed range of rows (first, end) of one table, whatever happens to its rows."""

    subset: str
    number: int
    table: SourceTable
    rows: tuple[int, int]


def plan_shards(
    subset: str, tables: list[SourceTable], rows_per_shard: int, max_rows: int | None = None
) -> list[ShardTask]:
    """Cuts a subset's tables into ranges of `rows_per_shard` rows; `max_rows` keeps the first rows, as the original."""
    end_of_use = sum(table.num_rows for table in tables) if max_rows is None else max_rows
    tasks: list[ShardTask] = []
    for table in tables:
        end = min(table.first_row + table.num_rows, end_of_use)
        for first in range(table.first_row, end, rows_per_shard):
            tasks.append(ShardTask(subset, len(tasks), table, (first, min(first + rows_per_shard, end))))
    return tasks


def write_shard(
    task: ShardTask, image_dir: Path, output_dir: Path, progress: Callable[[int], object] = lambda rows: None
) -> ShardRecord:
    """Writes one shard under `output_dir`/<subset>; it appears complete or not at all.

    Args:
        task: what to write.
        image_dir: the folder that the table's picture paths are relative to.
        output_dir: the data set's folder.
        progress: is called with the number of rows done since the last call.

    Raises:
        InputError: a picture is missing, unreadable or outside its folder; the message names table, row and picture.
    """
    pictures = _CheckedPictures(ImageFolder(image_dir))
    skipped: Counter[str] = Counter()
    with ShardWriter(output_dir / task.subset, shard_name(task.subset, task.number), task.subset) as shard:
        for row, record in task.table.rows(*task.rows):
            reason = _reason_to_skip(record)
            if reason:
                skipped[reason] += 1
            else:
                shard.add(row, _sides(record, pictures, f"{task.table.path}: row {row - task.table.first_row}"))
            progress(1)
        return shard.commit(task.rows, skipped)


def _reason_to_skip(record: dict[str, str]) -> str | None:
    """Rows without a query or without a target cannot be trained on (the original puts a dummy text in their place)."""
    for side in (QUERY, POSITIVE):
        text, path = (record[column] for column in SIDE_COLUMNS[side])
        if not text.strip() and not path:
            return f"empty {side}"
    return None


def _sides(record: dict[str, str], pictures: _CheckedPictures, where: str) -> dict[str, StoredItem]:
    sides: dict[str, StoredItem] = {}
    for side, columns in SIDE_COLUMNS.items():
        text, path = (record.get(column, "") for column in columns)
        if side == NEGATIVE and not text.strip() and not path:
            continue
        try:
            sides[side] = pictures.stored_item(text, path)
        except InputError as error:
            raise InputError(f"{where}, {side}: {error}") from error
    return sides


class _CheckedPictures:
    """Reads pictures and decodes each once, because only decoding finds a truncated JPEG.

    Several rows often share a picture (four in DocVQA), so what was decoded before is remembered by its bytes.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self._headers: dict[bytes, ImageHeader] = {}

    def stored_item(self, text: str, path: str) -> StoredItem:
        if not path:
            return StoredItem(Item(text, None))
        data = self._folder.read(path)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest not in self._headers:
            open_image(data, path)
            self._headers[digest] = read_header(data, path)
        return StoredItem(Item(text, data), self._headers[digest], path)
