"""Encoding with the Qwen-VL families: this project compared with transformers' processors and models.

    python -m benchmarks.qwen_vl [--rounds 7] [--items 24]

Both have the same weights, those of the tests' reference models, and get the same items: as many texts as images of a
few sizes, each image with a text, in the models' own chat template. transformers is used as usual: one padded batch
through `Qwen2VLImageProcessorPil`, the tokenizer and one forward pass of the model without its output head, then the
normalized state of the last real token. Times are processor seconds with one thread; the two alternate, and their
vectors are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm2vec import VLM2Vec
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS, IMAGE_TOKEN
from vlm2vec.backbones.qwen_vl.items.processor import QwenVLProcessor
from vlm2vec.contrastive import Chunk
from vlm2vec.errors import run_program
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import DEFAULT_BATCH_TOKENS_CPU, TokenBudget
from vlm2vec.inputs.user_lists import make_items
from vlm2vec.item_rules import IMAGE_TAG
from vlm2vec.messages.command_line import Parser, first_line

MODELS: dict[str, type[transformers.PreTrainedModel]] = {
    "qwen2_vl": transformers.Qwen2VLModel,
    "qwen2_5_vl": transformers.Qwen2_5_VLModel,
    "qwen3_vl": transformers.Qwen3VLModel,
}
FOLDERS = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"
FORMAT = "chat"
# Sizes of photographs in MMEB's datasets, and of a thumbnail.
SIZES = ((640, 480), (500, 375), (480, 640), (336, 336))
WORDS = ("red", "square", "two", "small", "dogs", "on", "the", "left", "of", "an", "old", "wooden", "table", "window")
# Largest difference of a number of a unit vector.
MOST_DIFFERENCE = 1e-5

REFERENCE, OURS = "transformers", "this code"
# The measured parts.
IMAGES, FORWARD, COLLATED, WHOLE = "images", "tensors", "processed items", "texts and images"


class Items:
    """Texts and images.

    Args:
        count: Number of items; every second one has an image.
    """

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.texts: list[str] = []
        self.images: list[Image.Image | None] = []
        for index in range(count):
            text = " ".join(generator.choice(WORDS, size=int(generator.integers(4, 40))))
            image = _photograph(SIZES[index // 2 % len(SIZES)], generator) if index % 2 else None
            self.texts.append(f"<|image_1|>\n{text}" if image else text)
            self.images.append(image)

    @property
    def photographs(self) -> list[Image.Image]:
        """The images alone."""
        return [image for image in self.images if image is not None]


class Reference:
    """Encodes with transformers.

    Args:
        family: One of `MODELS`.
        items: The items to encode.
        limits: Minimum and maximum area of images in pixels.
    """

    def __init__(self, family: str, items: Items, limits: dict[str, int]) -> None:
        folder = FOLDERS / family / "model"
        self._model = MODELS[family].from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
        self._image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, size=size)
        self._items = items
        self._tensors = self._batch()

    def images(self) -> dict[str, Tensor]:
        """`pixel_values` and `image_grid_thw` of all images."""
        return dict(self._image_processor(self._items.photographs, return_tensors="pt"))

    def forward(self) -> Tensor:
        """Vectors of the padded batch."""
        return self._vectors(self._tensors)

    def whole(self) -> Tensor:
        """Vectors of the raw items."""
        return self._vectors(self._batch())

    def _batch(self) -> dict[str, Tensor]:
        images = self.images()
        counts = (images["image_grid_thw"].prod(dim=1) // 4).tolist()
        prompts = []
        for text, image in zip(self._items.texts, self._items.images, strict=True):
            prompt = FORMATS[FORMAT].render(text, 0 if image is None else 1)
            if image is not None:
                tokens = FORMATS[FORMAT].image.replace(IMAGE_TOKEN, IMAGE_TOKEN * counts.pop(0))
                prompt = IMAGE_TAG.sub(tokens, prompt)
            prompts.append(prompt)
        texts = self._tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
        of_images = texts["input_ids"] == self._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        return {**texts, **images, "mm_token_type_ids": of_images.int()}

    @torch.no_grad()
    def _vectors(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self._model(**batch).last_hidden_state
        last = batch["attention_mask"].sum(dim=1) - 1
        return torch.nn.functional.normalize(hidden[torch.arange(len(hidden)), last], dim=-1)


class Ours:
    """Encodes with this project's code.

    Args:
        family: One of `MODELS`.
        items: The items to encode.
    """

    def __init__(self, family: str, items: Items) -> None:
        folder = FOLDERS / family / "model"
        self.encoder = VLM2Vec.from_pretrained(folder, prompt_format=FORMAT, max_len=None, device="cpu")
        self._items = items
        self._inputs = ItemEncoderInputs(self.encoder.processor, None)
        made = make_items(items.texts, items.images, self.encoder.processor.prompt_format)
        self._processed = [self._inputs.process(each) for each in made]
        budget = TokenBudget(DEFAULT_BATCH_TOKENS_CPU, max_shortfall=1.0, images_apart=False)
        self._batches = budget.pack([self._inputs.measure_item(each) for each in made])
        self._chunks = list(self._made_chunks())

    @property
    def limits(self) -> dict[str, int]:
        """Minimum and maximum area of images in pixels."""
        return dict(self.encoder.processor.image_limits)

    def images(self) -> list[Tensor]:
        """`pixel_values` of each image."""
        processor = self.encoder.processor
        assert isinstance(processor, QwenVLProcessor)
        return [processor.image_processor.pixel_values(image) for image in self._items.photographs]

    def forward(self) -> Tensor:
        """Vectors of chunks as the loader's workers create them."""
        return self._vectors(self._chunks)

    def collated(self) -> Tensor:
        """Vectors of processed items, which are first normalized and collated."""
        return self._vectors(self._made_chunks())

    def _made_chunks(self) -> Iterator[Chunk]:
        for batch in self._batches:
            yield self._inputs.chunk([self._processed[index] for index in batch])

    @torch.no_grad()
    def _vectors(self, chunks: Iterable[Chunk]) -> Tensor:
        vectors = torch.empty(len(self._processed), self.encoder.hidden_size)
        for batch, chunk in zip(self._batches, chunks, strict=True):
            vectors[batch] = self.encoder(**chunk.arguments(self.encoder.device, dummy_image=False))
        return vectors

    def whole(self) -> Tensor:
        """Vectors of the raw items."""
        return self.encoder.encode(self._items.texts, self._items.images)


def _photograph(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Noise as smooth as a photograph."""
    coarse = generator.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def compared(family: str, items: Items, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Processor seconds of both for one family, by measured part; see `main`.

    Raises:
        SystemExit: Their pixels or vectors differ.
    """
    ours = Ours(family, items)
    reference = Reference(family, items, ours.limits)
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        IMAGES: (reference.images, ours.images),
        FORWARD: (reference.forward, ours.forward),
        COLLATED: (reference.forward, ours.collated),
        WHOLE: (reference.whole, ours.whole),
    }
    if not torch.equal(reference.images()["pixel_values"], torch.cat(ours.images())):
        raise SystemExit(f"{family}: the pixels of the two differ")
    seconds: dict[str, dict[str, list[float]]] = {made: {REFERENCE: [], OURS: []} for made in ways}
    for _ in range(rounds):
        for made, pair in ways.items():
            results = []
            for way, call in zip((REFERENCE, OURS), pair, strict=True):
                start = time.process_time()
                results.append(call())
                seconds[made][way].append(time.process_time() - start)
            if made != IMAGES:
                difference = float((results[0] - results[1]).abs().max())
                if not difference <= MOST_DIFFERENCE:
                    raise SystemExit(f"{family}: the vectors of the two differ by {difference}")
    return seconds


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.qwen_vl",
        description=first_line(__doc__),
        examples=("python -m benchmarks.qwen_vl --rounds 7 --items 24",),
    )
    made.add_argument("--rounds", type=int, default=7, help="Number of rounds; what is compared takes turns.")
    made.add_argument("--items", type=int, default=24, help="Number of items.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    items = Items(options.items)
    tables: dict[str, list[str]] = {"items": [], "images": []}
    for family in MODELS:
        for made, ways in compared(family, items, options.rounds).items():
            theirs, ours = (statistics.median(each) for each in ways.values())
            ratio = statistics.median(one / other for one, other in zip(*ways.values(), strict=True))
            if made == IMAGES:
                count = len(items.photographs)
                cells = f"{1000 * theirs / count:.1f} | {1000 * ours / count:.1f} | {ratio:.2f}"
                tables["images"].append(f"| {family} | {cells} |")
            else:
                cells = f"{options.items / theirs:.1f} | {options.items / ours:.1f} | {ratio:.2f}"
                tables["items"].append(f"| {family} | {made} | {cells} |")
    print(
        f"{options.items} items, {len(items.photographs)} of them with an image; medians of {options.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. Pixels are equal, vectors differ by at most "
        f"{MOST_DIFFERENCE:.0e}.\n"
    )
    print(f"| family | from | {REFERENCE}, items/s | {OURS}, items/s | {OURS} / {REFERENCE} |")
    print("| --- " * 5 + "|", *tables["items"], sep="\n")
    print(f"\n| family | {REFERENCE}, ms an image | {OURS}, ms an image | {REFERENCE} / {OURS} |")
    print("| --- " * 4 + "|", *tables["images"], sep="\n")


if __name__ == "__main__":
    sys.exit(run_program(main))
