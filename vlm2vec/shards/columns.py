"""An index in memory, in one form for all versions: NumPy columns, so that a million samples need little memory.

Per sample: `row`, `offset`, `size`, `checksum`, `negative_starts` (samples + 1: where a sample's hard negatives begin).
Per item, for each side: `{side}_text_length`, `{side}_hash`, `{side}_image_starts` (items + 1: where an item's images
begin); the item of a query or target has its sample's position. Per image: `{side}_widths`, `{side}_heights`, and on
request `{side}_image_hashes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_PIXELS
from vlm2vec.shards.entry import IndexEntry, ItemEntry, Size
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, SIDES
from vlm2vec.shards.tar import BLOCK_BYTES

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Columns = Mapping[str, Array]


def starts_of(counts: Array) -> Array:
    """Start of each of some concatenated lists, and the end of the last one; shape (lists + 1,)."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts.astype(np.int32) if starts[-1] <= np.iinfo(np.int32).max else starts


def places(starts: Array, lists: Indices) -> tuple[Indices, Indices]:
    """Finds the entries of some lists.

    Args:
        starts: Starts of all lists, see `starts_of`.
        lists: Numbers of the chosen lists, shape (n,).

    Returns:
        For each entry, the index into `lists` of its list, and its place among the entries of all lists.
    """
    first = starts[lists].astype(np.int64)
    counts = starts[lists + 1] - first
    which = np.repeat(np.arange(len(lists)), counts)
    return which, np.arange(len(which)) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def image_sizes(columns: Columns, side: str, items: Indices) -> list[tuple[Size, ...]]:
    """Width and height in pixels of every image of some items of a side."""
    starts = columns[f"{side}_image_starts"]
    _, images = places(starts, items)
    widths, heights = (columns[f"{side}_{name}"][images].tolist() for name in ("widths", "heights"))
    sizes = list(zip(widths, heights, strict=True))
    ends = np.cumsum(starts[items + 1] - starts[items]).tolist()
    return [tuple(sizes[first:end]) for first, end in zip([0, *ends][:-1], ends, strict=True)]


def entry_at(columns: Columns, position: int) -> IndexEntry:
    """The index row of the sample at a position."""
    first, end = columns["negative_starts"][position : position + 2].tolist()
    row, offset, size, checksum = (columns[name].item(position) for name in ("row", "offset", "size", "checksum"))
    return IndexEntry(
        row,
        offset,
        size,
        checksum,
        _item(columns, QUERY, position),
        _item(columns, POSITIVE, position),
        tuple(_item(columns, NEGATIVE, item) for item in range(first, end)),
    )


def _item(columns: Columns, side: str, item: int) -> ItemEntry:
    first, end = columns[f"{side}_image_starts"][item : item + 2].tolist()
    widths, heights = (columns[f"{side}_{name}"][first:end].tolist() for name in ("widths", "heights"))
    hashes = columns.get(f"{side}_image_hashes")
    return ItemEntry(
        columns[f"{side}_text_length"].item(item),
        columns[f"{side}_hash"].item(item),
        tuple(zip(widths, heights, strict=True)),
        None if hashes is None else tuple(hashes[first:end].tolist()),
    )


def joined(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Joins the columns of a subset's shards, and empties the parts: keeping both would take twice the memory."""
    whole: dict[str, Array] = {}
    for name in list(parts[0]):
        columns = [part.pop(name) for part in parts]
        if name.endswith("_starts"):
            whole[name] = starts_of(np.concatenate([np.diff(column) for column in columns]))
        else:
            whole[name] = np.concatenate(columns)
    return whole


def check_columns(columns: Columns, path: str, record: ShardRecord) -> None:
    """Refuses an index that cannot belong to its tar, before its values are used to seek, allocate or plan.

    Args:
        columns: Columns of one shard.
        path: Name of the index in messages.
        record: The shard, as the manifest describes it.

    Raises:
        InputError: A value is impossible; the message names the column and the entry.
    """
    for problem, wrong in _impossible_spans(columns, record):
        refuse_where(wrong, problem, path)
    for side in SIDES:
        samples = np.arange(len(columns["row"]))
        if side == NEGATIVE:
            samples = np.repeat(samples, np.diff(columns["negative_starts"]))
        owners = np.repeat(samples, np.diff(columns[f"{side}_image_starts"]))
        for problem, wrong in _impossible_images(columns, side, owners):
            refuse_where(wrong, problem, path, owners)
        for problem, wrong in _impossible_items(columns, side, samples):
            refuse_where(wrong, problem, path, samples)


def refuse_where(wrong: Array, problem: str, path: str, samples: Array | None = None) -> None:
    """Refuses an index with an impossible value.

    Args:
        wrong: Whether each value is impossible.
        problem: What is wrong with such a value.
        path: Name of the index in messages.
        samples: Sample that each value belongs to; None: one value per sample.

    Raises:
        InputError: The index has such a value.
    """
    if wrong.any():
        entry = int(np.argmax(wrong))
        entry = entry if samples is None else int(samples[entry])
        raise InputError(f"{path}: entry {entry}: {problem}; convert again")


def _impossible_spans(columns: Columns, record: ShardRecord) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yields each possible problem and the samples that have it; later checks rely on earlier ones."""
    row, offset, size = columns["row"], columns["offset"], columns["size"]
    first, end = record.rows
    yield f"row is not one of {first} to {end - 1}", (row < first) | (row >= end)
    yield "row is not above the row of the sample before", np.diff(row, prepend=first - 1) < 1
    yield f"size is not within the tar's {record.bytes} bytes", (size < 1) | (size > record.bytes)
    yield f"offset is not within the tar's {record.bytes} bytes", (offset < 0) | (offset > record.bytes - size)
    yield "offset is not where the sample before ends", offset != np.concatenate([[0], (offset + size)[:-1]])


def _impossible_images(columns: Columns, side: str, owners: Array) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    width, height = (columns[f"{side}_{name}"].astype(np.int64) for name in ("widths", "heights"))
    yield f"{side}_width or {side}_height is negative", (width < 0) | (height < 0)
    yield f"{side}_width or {side}_height is zero", (width == 0) | (height == 0)
    yield f"{side}_width x {side}_height is too many pixels", width * height > MAX_IMAGE_PIXELS
    images = np.bincount(owners, minlength=len(columns["row"]))
    yield (
        f"the {side} has more images than the sample's bytes hold",
        images[owners] * BLOCK_BYTES > _sizes(columns, owners),
    )


def _impossible_items(columns: Columns, side: str, samples: Array) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    length = columns[f"{side}_text_length"].astype(np.int64)
    too_long = (length < 0) | (length > _sizes(columns, samples))
    yield f"{side}_text_length is negative or larger than the sample", too_long
    yield f"the {side} is empty", (length == 0) & (np.diff(columns[f"{side}_image_starts"]) == 0)


def _sizes(columns: Columns, samples: Array) -> Array:
    sizes: Array = columns["size"][samples]
    return sizes
