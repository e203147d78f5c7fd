"""Batches for the benchmarks of a step: the miniature's, and synthetic ones with MMEB's mix of lengths."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel, item_with_images
from vlm2vec.batches.order import GlobalOrder
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.shards import Item, ShardSet

NUM_CROPS = 4
VOCABULARY = 2048


@dataclass(frozen=True)
class Workload:
    """Global batches, and the encoder for them.

    Attributes:
        name: Its name in tables.
        encoder: A small Phi-3-V, in training mode.
        items: The distinct items of all batches.
        batches: Each a list of pairs (query, target), as indices into `items`.
        chunk_tokens: The token budget that a user would give for this size of model.
    """

    name: str
    encoder: VLM2Vec
    items: Sequence[ProcessedItem]
    batches: Sequence[Sequence[tuple[int, int]]]
    chunk_tokens: int


def prepare_miniature(folder: Path) -> None:
    """Builds the miniature, its model and its shards below `folder`, as `make demo` does, unless they exist."""
    if (folder / "shards" / "manifest.json").is_file():
        return
    train = folder / "mini" / "MMEB-train"
    for module, *flags in (
        ("data_prep.mini_mmeb", str(folder / "mini")),
        ("data_prep.mini_model", "--dataset_name", str(train), "--output_dir", str(folder / "model")),
        (
            *("data_prep.convert", "--dataset_name", str(train), "--subset_name", "all", "--split_name", "original"),
            *("--image_dir", str(train), "--output_dir", str(folder / "shards")),
        ),
    ):
        subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=subprocess.DEVNULL, timeout=600)


def miniature(folder: Path, pairs: int, num_batches: int) -> Workload:
    """Real images and texts of the miniature, mixed freely over its subsets."""
    prepare_miniature(folder)
    encoder = VLM2Vec.from_pretrained(folder / "model", dtype=torch.float32, device="cpu").train()
    shards = ShardSet.open(str(folder / "shards"))
    order = GlobalOrder(shards.num_samples, pairs, seed=0)
    inputs = ItemEncoderInputs(encoder.processor, max_len=256)
    numbers: dict[Item, int] = {}
    batches = []

    def number_of(item: Item) -> int:
        return numbers.setdefault(item, len(numbers))

    for step in range(num_batches):
        batch = order.batch(step)
        samples = [shards.read(shards.subsets[s], int(p)) for s, p in zip(batch.subsets, batch.positions, strict=True)]
        batches.append([(number_of(each.query), number_of(each.positive)) for each in samples])
    items = [
        inputs.process(EncodeItem(item.text, tuple(ItemImage(image, "image") for image in item.images), "item"))
        for item in numbers
    ]
    return Workload(f"miniature, {pairs} pairs", encoder, items, batches, chunk_tokens=2048)


def mmeb_mix(pairs: int, num_batches: int) -> Workload:
    """Lengths as in MMEB-train with 4 crops: half of the items are short texts, images take 457 to 781 tokens.

    Images have the full-size geometry (crops of 336 pixels, 577 patches); the widths of the model are small. One row in
    ten shares its target with a different row, as answers of HatefulMemes or ImageNet do.
    """
    torch.manual_seed(0)
    config = Phi3VConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 336,
            "patch_size": 14,
        },
    )
    encoder = VLM2Vec(Phi3VModel(config), processor=None, max_len=None).train()  # type: ignore[arg-type]
    made = torch.Generator().manual_seed(0)
    layouts = Phi3VImageProcessor(NUM_CROPS)
    make = phi3_v_items(layouts, lambda shape: torch.randn(shape, generator=made))
    items, batches = mmeb_pairs(pairs, num_batches, make)
    return Workload(f"MMEB's lengths, {pairs} pairs", encoder, items, batches, chunk_tokens=8192)


# Makes an item from text ids (tokens,) and the size of an image in pixels, if it has one.
MakeItem = Callable[[torch.Tensor, tuple[int, int] | None], ProcessedItem]


def phi3_v_items(layouts: Phi3VImageProcessor, pixels: Callable[[tuple[int, int, int, int]], torch.Tensor]) -> MakeItem:
    """Phi-3-V's items.

    Args:
        layouts: Cuts images into crops.
        pixels: Makes crops of a given shape (crops, 3, S, S).
    """

    def make(text: torch.Tensor, size: tuple[int, int] | None) -> ProcessedItem:
        if size is None:
            return ProcessedItem(text)
        layout = layouts.layout(*size)
        return item_with_images(
            torch.cat([torch.tensor([1]), torch.full((layout.num_tokens,), -1), text]),
            pixels((layout.num_crops, 3, layouts.crop_size, layouts.crop_size)),
            torch.tensor([layouts.image_size(*size)]),
        )

    return make


def mmeb_pairs(pairs: int, num_batches: int, make: MakeItem) -> tuple[list[ProcessedItem], list[list[tuple[int, int]]]]:
    """Items and batches with MMEB-train's mix of lengths; see `mmeb_mix`.

    Args:
        pairs: Number of pairs per batch.
        num_batches: Number of batches.
        make: Makes an item.
    """
    generator = torch.Generator().manual_seed(0)
    # Wide, square and upright images: 457 to 781 tokens at full size.
    sizes = [(640, 480), (500, 500), (1024, 500), (480, 640), (1200, 400)]

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def item(with_image: bool) -> ProcessedItem:
        text = torch.randint(3, VOCABULARY, (draw(8, 40),), generator=generator)
        return make(text, sizes[draw(0, len(sizes))] if with_image else None)

    items: list[ProcessedItem] = []
    batches = []
    for _ in range(num_batches):
        first = len(items)
        # In 12 of 20 subsets queries have an image, and in 8 of 20 targets do.
        items += [item(with_image=row % 5 < 3) for row in range(pairs)]
        items += [item(with_image=row % 5 >= 3) for row in range(pairs)]
        targets = [first + pairs + (row - 5 if row % 10 == 5 else row) for row in range(pairs)]
        batches.append([(first + row, targets[row]) for row in range(pairs)])
    return items, batches
