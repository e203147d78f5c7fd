"""Reads a rank's items from the shards: texts to plan a step, images to make a chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.batches.groups import RowGroups
from vlm2vec.batches.layout import BatchLayout
from vlm2vec.batches.layout.places import QUERY, ItemPlaces, ItemReference
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.batches.step_plan import ChunkSizes, PlannedItem, StepHeader, StepPlan, end_to_end_positions
from vlm2vec.contrastive import Chunk, Pairs, StepLayout
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, named_images
from vlm2vec.shards import DamagedSampleError, Sample, ShardSet
from vlm2vec.shards.columns import image_sizes
from vlm2vec.shards.entry import Size, item_name

# Limits on the samples in memory, with undecoded images, while a step is planned: number, and bytes (or one sample).
_READ_TOGETHER = 512
_READ_BYTES = 256 << 20


class MadeChunk(NamedTuple):
    """A chunk, and its items that could not be read.

    Attributes:
        chunk: The chunk, with empty items in place of damaged ones.
        damage: The damaged items, each with the reason.
    """

    chunk: Chunk
    damage: tuple[tuple[ItemReference, str], ...]


class BatchReader:
    """Reads one rank's part of a global batch.

    Args:
        shards: The samples.
        inputs: Builds the encoder's inputs.
        chunk_sizes: How items become chunks.
        rank: The rank to read for.
        temperatures: Groups of rows with one temperature each; None if all rows share one.
    """

    def __init__(
        self,
        shards: ShardSet,
        inputs: ItemEncoderInputs,
        chunk_sizes: ChunkSizes,
        rank: int,
        temperatures: RowGroups | None = None,
    ) -> None:
        self.shards = shards
        self.inputs = inputs
        self.chunk_sizes = chunk_sizes
        self.rank = rank
        self.temperatures = temperatures

    def plan(self, batch: GlobalBatch, layout: BatchLayout) -> StepPlan:
        """Reads and tokenises the texts of this rank's items, and packs them.

        Raises:
            InputError: The shards cannot be reached. An unusable item raises no error; it is planned as damaged.
        """
        items = self._read_texts(layout.of_rank(self.rank))
        measured = [item.measured for item in items]
        phases = self.chunk_sizes.phases(measured)
        encode, keep, _ = phases
        rows = layout.rows_of_rank(self.rank)
        header = StepHeader(
            step=batch.step,
            epoch=batch.epoch,
            layout=StepLayout(
                counts=layout.counts,
                local_order=end_to_end_positions([*encode, *keep]),
                pairs=pairs_of(
                    layout, None if self.temperatures is None else self.temperatures.of_subset[batch.subsets]
                ),
                rows=rows,
                digest=layout.digest,
            ),
            row_subsets=torch.from_numpy(np.ascontiguousarray(batch.subsets[rows.start : rows.stop])),
            num_items=len(items),
            num_tokens=sum(item.num_tokens for item in measured),
            squared_tokens=sum(item.num_tokens**2 for item in measured),
            vision_units=sum(item.vision_units for item in measured),
            squared_vision_units=sum(item.squared_vision_units for item in measured),
            phases=tuple((len(phase), sum(measured[chunk[0]].has_image for chunk in phase)) for phase in phases),
        )
        return StepPlan(header, [[items[index] for index in chunk] for phase in phases for chunk in phase])

    def chunk(self, items: Sequence[PlannedItem]) -> MadeChunk:
        """Makes a chunk: reads, decodes and preprocesses its images.

        Raises:
            InputError: The shards cannot be reached.
        """
        with_image = [item for item in items if item.measured.has_image]
        samples = self.shards.read_many(dict.fromkeys(_place(item.reference) for item in with_image))
        damage: dict[int, tuple[ItemReference, str]] = {}

        def processed() -> Iterator[ProcessedItem]:
            for index, item in enumerate(items):
                try:
                    yield self._processed(item, samples)
                except InputError as error:
                    damage[index] = item.reference, str(error)
                    yield self.inputs.process(EncodeItem("", (), item.name))

        vision_units = sum(item.measured.vision_units for item in with_image)
        chunk = self.inputs.collate(processed(), vision_units, [item.name for item in items])
        return MadeChunk(replace(chunk, damaged=tuple(damage)), tuple(damage.values()))

    def _read_texts(self, references: Sequence[ItemReference]) -> list[PlannedItem]:
        """Reads the items' texts in limited groups: images are read along with the texts but are not needed yet."""
        sizes = self._image_sizes(references)
        items: dict[int, PlannedItem] = {}
        for indices in self._read_together(references):
            samples = self.shards.read_many(dict.fromkeys(_place(references[index]) for index in indices))
            for index in indices:
                items[index] = self._planned(references[index], sizes[index], samples[_place(references[index])])
        return [items[index] for index in range(len(references))]

    def _read_together(self, references: Sequence[ItemReference]) -> Iterator[list[int]]:
        """Groups of item indices, in the order of their samples, whose samples fit in memory together."""
        group: list[int] = []
        num_bytes = 0
        for index in sorted(range(len(references)), key=lambda index: _place(references[index])):
            own = int(self.shards.columns(references[index].subset)["size"][references[index].position])
            if group and (len(group) == _READ_TOGETHER or num_bytes + own > _READ_BYTES):
                yield group
                group, num_bytes = [], 0
            group.append(index)
            num_bytes += own
        if group:
            yield group

    def _planned(
        self, reference: ItemReference, sizes: Sequence[Size], sample: Sample | DamagedSampleError
    ) -> PlannedItem:
        side = item_name(reference.side, reference.number)
        if isinstance(sample, DamagedSampleError):
            name = f"{reference.subset} at {reference.position} ({side})"
            return self._damaged(reference, name, str(sample))
        item = sample.item(reference.side, reference.number)
        name = f"{sample.key} ({side})"
        if item is None:
            return self._damaged(reference, name, f"{name}: missing in the shard's tar; convert the shard again")
        try:
            measured = self.inputs.measure(item.text, sizes, name, reference.side == QUERY)
        except InputError as error:
            return self._damaged(reference, name, str(error))
        return PlannedItem(reference, name, item.text, measured)

    def _damaged(self, reference: ItemReference, name: str, damage: str) -> PlannedItem:
        """An empty item in place of one that cannot be used."""
        return PlannedItem(reference, name, "", self.inputs.measure("", [], name, reference.side == QUERY), damage)

    def _image_sizes(self, references: Sequence[ItemReference]) -> list[tuple[Size, ...]]:
        """Width and height of every image of some items, from the index."""
        sizes: list[tuple[Size, ...]] = [()] * len(references)
        subsets = {name: number for number, name in enumerate(self.shards.subsets)}
        for side in {reference.side for reference in references}:
            own = [index for index, reference in enumerate(references) if reference.side == side]
            chosen = [references[index] for index in own]
            where = ItemPlaces(
                side,
                np.array(own),
                np.array([subsets[each.subset] for each in chosen]),
                np.array([each.position for each in chosen]),
                np.array([each.number for each in chosen]),
            )
            for members, columns, items in where.by_subset(self.shards):
                for member, each in zip(members.tolist(), image_sizes(columns, side, items), strict=True):
                    sizes[own[member]] = each
        return sizes

    def _processed(
        self, item: PlannedItem, samples: Mapping[tuple[str, int], Sample | DamagedSampleError]
    ) -> ProcessedItem:
        if item.damage is not None:
            raise InputError(item.damage)
        if not item.measured.has_image:
            return self.inputs.process(EncodeItem(item.text, (), item.name))
        sample = samples[_place(item.reference)]
        if isinstance(sample, DamagedSampleError):
            raise sample
        stored = sample.item(item.reference.side, item.reference.number)
        assert stored is not None, "the item had an image when it was planned"
        processed = self.inputs.process(EncodeItem(stored.text, named_images(stored.images, item.name), item.name))
        if processed.vision_units != item.measured.vision_units:
            raise InputError(f"{item.name}: the image's size differs from the shard's index; convert the shard again")
        return processed


def pairs_of(layout: BatchLayout, temperature_group: npt.NDArray[np.int64] | None = None) -> Pairs:
    """The layout's rows as tensors."""
    teacher = layout.teacher
    arrays = {
        "negative": layout.negative,
        "negative_row": layout.negative_row,
        "ignored": None if teacher is None else teacher.ignored,
        "teacher_positive": None if teacher is None else teacher.positive,
        "teacher_negative": None if teacher is None else teacher.negative,
        "temperature_group": temperature_group,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    return Pairs(torch.from_numpy(layout.query), torch.from_numpy(layout.positive), **tensors)


def _place(reference: ItemReference) -> tuple[str, int]:
    return reference.subset, reference.position
