"""Finds the distinct items of the shards, plans their batches, and reads them for encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.mining.teacher import TeacherInputs
from vlm2vec.evaluation.encoding import ChunkMaker, ItemSource
from vlm2vec.evaluation.encoding_plan import EncodingPlan, pack_plan
from vlm2vec.evaluation.vector_store import VectorStore, arrays, expect
from vlm2vec.files import committed
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.inputs.packing import PackedItem, TokenBudget
from vlm2vec.shards import ShardSet
from vlm2vec.shards.schema import POSITIVE, QUERY, Sample, fast_hash, item_hash

Indices = npt.NDArray[np.int32]

_SIDES = (QUERY, POSITIVE)
# Stored for every distinct item: a hash of what the model reads, and the sizes that planning needs.
_MEASURES = {"key": np.int64, "num_tokens": np.int32, "vision_units": np.int32, "vision_tokens": np.int32}


@dataclass(frozen=True)
class ShardItems:
    """The distinct queries and targets of all subsets, found by their hashes in the index, without reading a sample.

    Attributes:
        subsets: The subsets' names.
        subset, position, side: Where each distinct item occurs first: number of the subset, position in it, and side
            (0: query, 1: target), (items,).
        numbers: For each subset, the items of its queries and of its targets, int32 (2, samples).
    """

    subsets: tuple[str, ...]
    subset: npt.NDArray[np.int16]
    position: Indices
    side: npt.NDArray[np.int8]
    numbers: dict[str, Indices]

    def __len__(self) -> int:
        return len(self.position)

    @staticmethod
    def find(shards: ShardSet) -> ShardItems:
        """Finds the distinct items; the same shards give the same numbers."""
        hashes = np.concatenate([shards.columns(name)[f"{side}_hash"] for name in shards.subsets for side in _SIDES])
        sizes = [shards.num_samples[name] for name in shards.subsets]
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        appearance = np.argsort(first)
        number_of = np.empty(len(first), dtype=np.int32)
        number_of[appearance] = np.arange(len(first), dtype=np.int32)
        entries = first[appearance]
        ends = np.cumsum(np.repeat(sizes, len(_SIDES)))
        column = np.searchsorted(ends, entries, side="right")
        position = entries - np.concatenate([[0], ends[:-1]])[column]
        split = np.split(number_of[inverse], ends[:-1])
        numbers = {name: np.stack(split[2 * number : 2 * number + 2]) for number, name in enumerate(shards.subsets)}
        return ShardItems(
            shards.subsets,
            (column // len(_SIDES)).astype(np.int16),
            position.astype(np.int32),
            (column % len(_SIDES)).astype(np.int8),
            numbers,
        )

    def of_subset(self, number: int) -> npt.NDArray[np.int64]:
        """The items that occur first in a subset, by position."""
        own = np.flatnonzero(self.subset == number)
        return own[np.argsort(self.position[own], kind="stable")]


@dataclass(frozen=True)
class Measures:
    """The hashes and sizes of the items; see `_MEASURES`, (items,) each."""

    key: npt.NDArray[np.int64]
    num_tokens: Indices
    vision_units: Indices
    vision_tokens: Indices

    def plan(self, batch_tokens: int, teacher: str) -> EncodingPlan:
        """Packs the items into batches; items that look the same to the model are encoded once.

        Args:
            batch_tokens: Maximum number of tokens per batch, including padding.
            teacher: Digest of the model; it becomes part of the plan's digest.
        """
        _, first, inverse = np.unique(self.key, return_index=True, return_inverse=True)
        appearance = np.argsort(first)
        number_of = np.empty(len(first), dtype=np.int32)
        number_of[appearance] = np.arange(len(first), dtype=np.int32)
        first_items: Indices = first[appearance].astype(np.int32)
        distinct: Indices = number_of[inverse]
        columns = (self.num_tokens[first_items], self.vision_units[first_items], self.vision_tokens[first_items])
        packed = [
            PackedItem(tokens, units, vision_tokens=vision)
            for tokens, units, vision in zip(*(column.tolist() for column in columns), strict=True)
        ]

        def digest(order: Indices, bounds: npt.NDArray[np.int64]) -> str:
            parts = (
                teacher.encode(),
                self.key[first_items[order]].astype("<i8").tobytes(),
                bounds.astype("<i8").tobytes(),
            )
            return hashlib.sha256(b"".join(parts)).hexdigest()

        return pack_plan(packed, first_items, distinct, TokenBudget(batch_tokens).pack(packed), digest)


def measure(
    items: ShardItems,
    shards: ShardSet,
    inputs: Callable[[], TeacherInputs],
    folder: Path,
    progress: Callable[[int], object],
) -> Measures:
    """Reads every distinct item once for its size. Results are stored per subset, so that a restart continues.

    Args:
        items: All distinct items.
        shards: The shards that contain them.
        inputs: Creates the object that computes sizes; called only if something is left to do.
        folder: A folder for this teacher and these shards only.
        progress: Called with the number of items that were completed.

    Raises:
        InputError: A sample is damaged, or an item cannot be encoded; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = VectorStore(folder)
    whole: dict[str, npt.NDArray[Any]] = {name: np.zeros(len(items), kind) for name, kind in _MEASURES.items()}
    made: TeacherInputs | None = None
    for number, name in enumerate(items.subsets):
        path, own = measures_file(folder, name), items.of_subset(number)
        if not path.is_file():
            made = made or inputs()
            _measure_subset(items, own, shards, made, path, progress)
        else:
            progress(len(own))
        with store.reading(path):
            found = arrays(path, _MEASURES)
            for column, values in found.items():
                expect(len(values) == len(own), f"{len(values)} items, not {len(own)}")
                whole[column][own] = values
    return Measures(**whole)


def measures_file(folder: Path, subset: str) -> Path:
    """The file with a subset's arrays of `_MEASURES`."""
    return folder / f"items-{subset}.npz"


def _measure_subset(
    items: ShardItems,
    own: npt.NDArray[np.int64],
    shards: ShardSet,
    inputs: TeacherInputs,
    path: Path,
    progress: Callable[[int], object],
) -> None:
    columns: dict[str, npt.NDArray[Any]] = {name: np.empty(len(own), kind) for name, kind in _MEASURES.items()}
    sample: Sample | None = None
    position = -1
    for place, index in enumerate(own.tolist()):
        if sample is None or items.position[index] != position:  # both sides of a sample are read at once
            position = int(items.position[index])
            sample = shards.read(items.subsets[items.subset[index]], position)
        item = encode_item(sample, int(items.side[index]))
        packed = inputs.measure_item(item)
        columns["key"][place] = _content(inputs.rendered(item), item)
        columns["num_tokens"][place] = packed.num_tokens
        columns["vision_units"][place] = packed.vision_units
        columns["vision_tokens"][place] = packed.vision_tokens
        progress(1)
    with committed(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)


class ShardItemSource(ItemSource):
    """Reads the batches of the shards' items.

    Args:
        items: All distinct items.
        shards: The shards that contain them.
        plan: The batches.
        inputs: Creates the encoder's inputs.
    """

    def __init__(self, items: ShardItems, shards: ShardSet, plan: EncodingPlan, inputs: ChunkMaker) -> None:
        super().__init__(plan, inputs)
        self.items = items
        self.shards = shards

    def item(self, index: int) -> EncodeItem:
        """Reads an item's sample."""
        items = self.items
        sample = self.shards.read(items.subsets[items.subset[index]], int(items.position[index]))
        return encode_item(sample, int(items.side[index]))


def encode_item(sample: Sample, side: int) -> EncodeItem:
    """The query (0) or the target (1) of a sample."""
    item = (sample.query, sample.positive)[side]
    name = f"{sample.key} {('query', 'target')[side]}"
    return EncodeItem(item.text, tuple(ItemImage(image, name) for image in item.images), name)


def _content(text: str, item: EncodeItem) -> int:
    """A signed 64-bit hash, equal if and only if the model reads the same text and images."""
    return item_hash(text, [fast_hash(image.source) for image in item.images if isinstance(image.source, bytes)])
