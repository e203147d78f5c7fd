"""Encoder inputs of a real family and of a made-up one with several tensors per image."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedConfig

from vlm2vec.backbones.collation import JoinedRows, padded_ids
from vlm2vec.backbones.interface import CollatedItems, ItemProcessor, ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.training.preflight.graph_memory import largest_chunk

PATCH = 10
IMAGE_TOKEN = 7
CPU = torch.device("cpu")


class PatchProcessor(ItemProcessor):
    """A letter is a token, four patches of 10 x 10 pixels are one; an image has two tensors and values on the host."""

    tokens_per_vision_unit = 0.4
    pad_token_id = 0
    largest_token_id = 255
    largest_image_size = (8 * PATCH, 4 * PATCH)
    image_limits: Mapping[str, int] = MappingProxyType({})

    @classmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        """Any will do."""

    def num_vision_units(self, width: int, height: int) -> int:
        if min(width, height) < PATCH:
            raise InputError("too thin")
        return (width // PATCH) * (height // PATCH)

    def num_image_tokens(self, width: int, height: int) -> int:
        return self.num_vision_units(width, height) // 4

    def tokenize(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        return [IMAGE_TOKEN] * sum(image_tokens) + [ord(letter) for letter in text][: None if image_tokens else max_len]

    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        ids = torch.tensor(self.tokenize(text, [self.num_image_tokens(*image.size) for image in images], max_len))
        if not images:
            return ProcessedItem(ids)
        grids = [(image.height // PATCH, image.width // PATCH) for image in images]
        count = sum(rows * columns for rows, columns in grids)
        places = torch.cat([torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) for rows, columns in grids])
        tensors = {"patches": torch.arange(3.0 * count).view(count, 3), "places": places}
        return ProcessedItem(ids, tensors, {"grids": grids}, count)

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        patches, places = JoinedRows(vision_units, dtype), JoinedRows(vision_units, torch.int64)
        ids: list[torch.Tensor] = []
        grids: list[tuple[int, int]] = []
        for item in items:
            ids.append(item.input_ids)
            if item.has_image:
                patches.add(item.tensors["patches"])
                places.add(item.tensors["places"])
                grids += item.host_values["grids"]
            del item
        tensors = padded_ids(ids, self.pad_token_id)
        if patches.joined is None or places.joined is None:
            dummy = {"patches": torch.zeros(4, 3, dtype=dtype), "places": torch.zeros(4, 2).long(), "grids": [(2, 2)]}
            return CollatedItems(tensors, {}, dummy, len(ids), has_image=False)
        images = {"patches": patches.joined, "places": places.joined}
        return CollatedItems({**tensors, **images}, {"grids": grids}, {}, len(ids), has_image=True)

    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        raise NotImplementedError

    @classmethod
    def without_tokenizer(
        cls, config: PreTrainedConfig, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> PatchProcessor:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> PatchProcessor:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        raise NotImplementedError


def image_item(text: str, *sizes: tuple[int, int]) -> EncodeItem:
    return EncodeItem(text, tuple(ItemImage(Image.new("RGB", size), "image") for size in sizes), "an item")


@pytest.fixture
def patches() -> ItemEncoderInputs:
    return ItemEncoderInputs(PatchProcessor(), max_len=5, pixel_dtype=torch.bfloat16)


def test_planning_and_processing_count_alike(patches: ItemEncoderInputs) -> None:
    for item in (image_item("some text"), image_item("ab", (40, 20)), image_item("ab", (40, 20), (20, 20))):
        measured, processed = patches.measure_item(item), patches.process(item)
        assert (measured.num_tokens, measured.vision_units) == (len(processed.input_ids), processed.vision_units)
        assert patches.budget_tokens(processed) == measured.num_tokens + measured.vision_tokens
    assert measured.vision_units == 12
    assert measured.squared_vision_units == 8**2 + 4**2  # an image attends to itself alone
    assert measured.vision_tokens == 5  # 0.4 each, rounded up
    assert patches.cost(8, [(40, 20)]) == 3 + 2 + 4
    assert patches.cost(8, [(40, 5)]) == 3  # an image that cannot be cut


def test_the_largest_item_may_have_several_images(patches: ItemEncoderInputs) -> None:
    assert patches.largest_item().vision_units == 32
    patches.expect([(60, 20), (60, 20), (60, 20)])
    assert patches.largest_item().vision_units == 36


def test_alpha_reaches_a_format_that_blends_it(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    item = EncodeItem("a", (ItemImage(tmp_path / "clear.png", "image"),), "an item")
    modes: list[str] = []

    class Recorder(PatchProcessor):
        def process_item(self, text: str, images: Sequence[Image.Image] = (), *others: Any) -> ProcessedItem:
            modes.extend(image.mode for image in images)
            return super().process_item(text, images, *others)

    for transparency in ("dropped", "white"):
        processor = Recorder()
        processor.prompt_format = PromptFormat(transparency=transparency)
        ItemEncoderInputs(processor, max_len=5).process(item)
    assert modes == ["RGB", "RGBA"]


def test_a_chunk_has_all_of_its_images_tensors_and_host_values(patches: ItemEncoderInputs) -> None:
    items = [image_item("ab", (40, 20), (20, 20)), image_item("abc"), image_item("a", (20, 40))]
    chunk = patches.chunk_of(items)
    assert (chunk.num_items, chunk.has_image) == (3, True)
    arguments = chunk.arguments(CPU, dummy_image=True)
    assert arguments["input_ids"].shape == arguments["attention_mask"].shape == (3, 5)
    assert arguments["patches"].shape == (12 + 8, 3)
    assert arguments["patches"].dtype == torch.bfloat16
    assert arguments["places"].tolist()[-1] == [3, 1]
    assert arguments["grids"] == [(2, 4), (2, 2), (4, 2)]


def test_a_dummy_may_have_tensors_and_host_values_of_an_images_names(patches: ItemEncoderInputs) -> None:
    chunk = patches.padding_chunk()
    assert not chunk.has_image
    assert chunk.arguments(CPU, dummy_image=False).keys() == {"input_ids", "attention_mask"}
    arguments = chunk.arguments(CPU, dummy_image=True)
    assert arguments["patches"].shape == (4, 3)
    assert arguments["grids"] == [(2, 2)]


def test_the_largest_chunk_counts_vision_units_too(patches: ItemEncoderInputs) -> None:
    """An image of 32 patches is 8 tokens and counts as 13 more."""
    assert largest_chunk(patches, TokenBudget(100)).num_items == 100 // 21
    measured = [patches.measure_item(image_item("", (80, 40))) for _ in range(9)]
    assert [len(chunk) for chunk in TokenBudget(100).pack(measured)] == [4, 4, 1]


def test_phi_counts_no_vision_units_in_a_budget_and_brings_its_dummy(golden_model_dir: Path) -> None:
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(golden_model_dir, num_crops=4), max_len=64)
    measured = inputs.measure("", [(300, 80)], "an item")
    assert measured.vision_units > 1
    assert measured.vision_tokens == 0
    assert inputs.padding_chunk().dummy_inputs == {"dummy_image": True}
    assert inputs.chunk_of([image_item("", (300, 80))]).dummy_inputs == {}


def test_only_one_items_pixels_are_held_beside_the_chunks(golden_model_dir: Path) -> None:
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(golden_model_dir, num_crops=4), max_len=64)
    before: list[weakref.ref[torch.Tensor]] = []

    def processed() -> Iterator[ProcessedItem]:
        for _ in range(3):
            assert [each for each in before if each() is not None] == []
            item = inputs.process(image_item("", (300, 80)))
            before.append(weakref.ref(item.tensors["pixel_values"]))
            yield item
            del item

    assert inputs.collate(processed(), vision_units=15).num_items == 3
    assert len(before) == 3
