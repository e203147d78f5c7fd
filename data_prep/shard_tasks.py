"""Converts ranges of source rows into shards; each range is an independent task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.images import CheckedImages, SubsetImages, UnusableImageError
from data_prep.rows import RawItem, RawPair, RowError, SourceRow, Table
from vlm2vec.errors import InputError
from vlm2vec.files import sha256_of
from vlm2vec.item_rules import check_item
from vlm2vec.shards.entry import item_name
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, sample_key, shard_name
from vlm2vec.shards.sidecar import Sidecar, UnusableImage, UnusableRow
from vlm2vec.shards.writer import ShardWriter, StoredItem

# Stands for the side in the counts if a whole row cannot be read.
WHOLE_ROW = "row"


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: a fixed range of rows of one table, however many of them are usable.

    Attributes:
        subset: The subset's name.
        number: The shard's number within its subset.
        table: The source table.
        rows: First row and end of the range.
        image_dir: The folder that the table's image paths are relative to.
        output_dir: The folder of all shards.
        check_images: A key of `images.CHECKS`.
        allow_links: Whether to follow links that lead out of `image_dir`.
    """

    subset: str
    number: int
    table: Table
    rows: tuple[int, int]
    image_dir: Path
    output_dir: Path
    check_images: str
    allow_links: bool

    @property
    def images(self) -> SubsetImages:
        """Opens the table's images."""
        return SubsetImages(self.image_dir, self.subset, self.allow_links)

    @property
    def stem(self) -> Path:
        """The shard's path without a suffix."""
        return self.output_dir / self.subset / shard_name(self.subset, self.number)


@dataclass(frozen=True)
class ShardResult:
    """A committed shard.

    Attributes:
        record: Its record in the manifest.
        unusable_images: The images because of which rows were left out.
        unusable_rows: The rows that no model can be trained on.
    """

    record: ShardRecord
    unusable_images: tuple[UnusableImage, ...]
    unusable_rows: tuple[UnusableRow, ...]


class UnusableItemError(Exception):
    """An item that no processor can encode or that has no content, or a row that cannot be read.

    Attributes:
        side: The item's side, by which such rows are counted.
        name: Its name in messages.
    """

    def __init__(self, side: str, error: Exception, number: int = 0) -> None:
        super().__init__(str(error))
        self.side = side
        self.name = item_name(side, number)


def make_shard(task: ShardTask) -> ShardResult:
    """Returns the shard that an earlier run completed, or writes it."""
    return _committed_shard(task) or write_shard(task)


def write_shard(task: ShardTask) -> ShardResult:
    """Writes one shard, which gets its name only when it is complete. Unusable rows are left out and recorded.

    Raises:
        InputError: The table is damaged.
    """
    images = CheckedImages(task.images, task.check_images)
    skipped: Counter[str] = Counter()
    unusable: dict[str, UnusableImage] = {}
    rows: list[UnusableRow] = []
    with ShardWriter(task.stem.parent, task.stem.name, task.subset) as shard:
        for row in task.table.rows(*task.rows):
            try:
                shard.add(row.number, *_items(row, images))
            except UnusableImageError as error:
                skipped[error.problem] += 1
                found = UnusableImage(error.path, error.problem, str(error), row.number, row.place)
                unusable.setdefault(error.path, found)
            except UnusableItemError as error:
                skipped[f"unusable {error.side}"] += 1
                key = sample_key(task.subset, row.number)
                rows.append(UnusableRow(key, row.number, error.name, str(error), row.place))
        committed = shard.commit(task.rows, skipped, list(unusable.values()), rows)
        return ShardResult(committed, tuple(unusable.values()), tuple(rows))


def _committed_shard(task: ShardTask) -> ShardResult | None:
    """The shard as an earlier run completed it; None if it must be written (again).

    It must be written again if rows were left out because of an image, which may have been added since, or if an image
    has changed. (The plan refuses changed tables and zips before.)
    """
    sidecar_path = task.stem.with_suffix(".json")
    try:
        committed_ns = sidecar_path.stat().st_mtime_ns
        sidecar = Sidecar.read(sidecar_path)
        record = sidecar.record
        same_size = task.stem.with_suffix(".tar").stat().st_size == record.bytes
        same_index = sha256_of(task.stem.with_suffix(".parquet")) == record.index_sha256
    except (OSError, InputError):
        return None
    if (record.name, record.rows) != (task.stem.name, task.rows) or not (same_size and same_index):
        return None
    if sidecar.unusable_images:
        return None
    images = task.images
    if any(images.changed_since(committed_ns, path) for path in _image_paths(task)):
        return None
    return ShardResult(record, (), sidecar.unusable_rows)


def _image_paths(task: ShardTask) -> set[str]:
    pairs = (row.content for row in task.table.rows(*task.rows) if isinstance(row.content, RawPair))
    return {path for pair in pairs for path in pair.image_paths()}


def _items(row: SourceRow, images: CheckedImages) -> tuple[StoredItem, StoredItem, list[StoredItem]]:
    """Query, target and hard negatives. None may be empty (the original would insert a dummy text)."""
    if isinstance(row.content, RowError):
        raise UnusableItemError(WHOLE_ROW, row.content)
    pair = row.content
    return (
        _stored(QUERY, pair.query, images),
        _stored(POSITIVE, pair.positive, images),
        [_stored(NEGATIVE, negative, images, number) for number, negative in enumerate(pair.negatives)],
    )


def _stored(side: str, item: RawItem, images: CheckedImages, number: int = 0) -> StoredItem:
    stored = tuple(images.load(image) for image in item.images)
    try:
        check_item(item.text, [(image.header.width, image.header.height) for image in stored])
    except InputError as error:
        raise UnusableItemError(side, error, number) from error
    return StoredItem(item.text, stored)
