"""Encoding and scoring the miniature: `eval.mmeb` compared with the original's loop.

    python -m benchmarks.evaluation [--rounds 3]

The original's loop encodes each dataset's distinct queries, then its distinct candidates, in batches of 16 in the order
of the data, in one process that also reads, decodes and tokenizes (benchmarks/original_encoder.py). It is compared with
(1) the same part of `eval.mmeb`, including the start of its workers and the writing of vectors, (2) that part with what
precedes it (every image read and hashed, distinct items found and packed), and (3) the whole program, from its
arguments to the written scores. The rounds alternate, and the vectors of both are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from benchmarks.original_encoder import OriginalEncoder, padded, process
from data_prep.mini_mmeb import EVAL_FOLDER, TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from eval import mmeb
from eval.mmeb_flags import ScoringArguments
from vlm2vec import VLM2Vec
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.errors import run_program
from vlm2vec.evaluation.data.datasets import read_data
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.encoding import BatchSource, encode_blocks
from vlm2vec.evaluation.encoding_plan import plan_encoding
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.images.decode import open_image
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import DEFAULT_BATCH_TOKENS_CPU
from vlm2vec.messages.command_line import Parser, first_line

ORIGINAL_BATCH = 16
NUM_CROPS = 4
MAX_LEN = 256
# Largest difference of a number of a unit vector; different batches round differently.
MOST_DIFFERENCE = 1e-5

Cost = list[float]  # seconds, CPU seconds


class Miniature:
    """Both programs on the same model and data.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with redirect_stdout(sys.stderr):
            dataset, model = build_miniature(root)
        self._images = ImageFolder(dataset / "images")
        self._flags = [
            *("--model_name", str(model), "--dataset_name", str(dataset), "--image_dir", str(dataset / "images")),
            *("--num_crops", str(NUM_CROPS), "--max_len", str(MAX_LEN)),
        ]
        self._data, _ = read_data(str(dataset), ["all"])
        self._encoder = VLM2Vec.from_pretrained(model, num_crops=NUM_CROPS, device="cpu").eval()
        self._original = OriginalEncoder(VLM2Vec.from_pretrained(model, num_crops=NUM_CROPS, device="cpu").eval())
        self.sides = [np.unique(side) for rows in self._data.datasets for side in (rows.queries, rows.candidates)]
        self.num_items = sum(len(side) for side in self.sides)
        self.num_distinct = 0
        self.vectors: dict[int, np.ndarray] = {}
        self.largest_difference = 0.0

    def original(self) -> Cost:
        """Times the original's loop."""
        with stopwatch() as cost, torch.no_grad():
            for side in self.sides:
                for start in range(0, len(side), ORIGINAL_BATCH):
                    indices = side[start : start + ORIGINAL_BATCH].tolist()
                    (batch,) = padded([self._processed(index) for index in indices], ORIGINAL_BATCH, NUM_CROPS)
                    self.vectors.update(zip(indices, self._original(batch).numpy(), strict=True))
        return cost

    def _processed(self, index: int) -> ProcessedItem:
        path = self._data.items.image(index)
        image = open_image(self._images.read(path)) if path else None
        processor = self._encoder.processor
        assert isinstance(processor, Phi3VProcessor)
        text = processor.prompt_format.render(self._data.items.text(index), 1 if path else 0)
        return process(processor, text, image, MAX_LEN)

    def ours(self, number: int) -> tuple[Cost, Cost]:
        """Times encoding the distinct items, and finding and encoding them."""
        items, processor = self._data.items, self._encoder.processor
        with stopwatch() as together:
            images = scan_images(items, self._images)
            inputs = ItemEncoderInputs(processor, MAX_LEN)
            plan = plan_encoding(items, images, inputs, DEFAULT_BATCH_TOKENS_CPU)
            with stopwatch() as encoding:
                store = EvalStore(self._root / f"store{number}")
                store.write_data(self._data, plan)
                source = BatchSource(items, plan, self._images, inputs)
                blocks, device = range(len(plan.blocks())), torch.device("cpu")
                encode_blocks(self._encoder, source, store, blocks, device, ScoringArguments.dataloader_num_workers)
                store.assemble(plan)
        self.num_distinct = len(plan.order)
        vectors = store.vectors()
        differences = (abs(vectors[plan.position[index]] - vector).max() for index, vector in self.vectors.items())
        self.largest_difference = max(self.largest_difference, *differences)
        if self.largest_difference > MOST_DIFFERENCE:
            raise SystemExit(f"the vectors of the two programs differ by {self.largest_difference}")
        return encoding, together

    def program(self, number: int) -> Cost:
        """Times the whole program."""
        with stopwatch() as cost:
            mmeb.main([*self._flags, "--encode_output_path", str(self._root / f"scores{number}")])
        return cost


def speed(root: Path, rounds: int) -> None:
    """Prints the times."""
    miniature = Miniature(root)
    rows: dict[str, list[Cost]] = {
        "the original's loop": [],
        "encoding": [],
        "distinct items found, and encoding": [],
        "all of eval.mmeb": [],
    }
    for number in range(rounds):
        with redirect_stdout(sys.stderr):
            costs = (miniature.original(), *miniature.ours(number), miniature.program(number))
        for row, cost in zip(rows.values(), costs, strict=True):
            row.append(cost)
    print(
        f"{miniature.num_items:,} items that the original encodes, {miniature.num_distinct:,} distinct ones; vectors "
        f"differ by at most {miniature.largest_difference:.0e}.\n"
    )
    print("| way | s | CPU s | items/s | of the original's | in CPU s |\n| --- | --- | --- | --- | --- | --- |")
    originals = next(iter(rows.values()))
    for name, row in rows.items():
        seconds, cpu = (statistics.median(values) for values in zip(*row, strict=True))
        ratio, cpu_ratio = (
            statistics.median(their / our for their, our in zip(theirs, ours, strict=True))
            for theirs, ours in zip(zip(*originals, strict=True), zip(*row, strict=True), strict=True)
        )
        items = miniature.num_items / seconds
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {items:.0f} | {ratio:.2f} | {cpu_ratio:.2f} |")


def build_miniature(root: Path) -> tuple[Path, Path]:
    """Builds the miniature and its untrained model; returns the folders of its evaluation data and of the model."""
    build_mini_mmeb(root / "mini", seed=0)
    build_mini_model(root / "mini" / TRAIN_FOLDER, root / "untrained", seed=0)
    return root / "mini" / EVAL_FOLDER, root / "untrained"


@contextmanager
def stopwatch() -> Iterator[Cost]:
    """Measures seconds, and CPU seconds of this process and of its workers that have ended; set at the end.

    CPU seconds do not depend on the machine's other load.
    """
    cost: Cost = []
    start, before = time.perf_counter(), os.times()
    yield cost
    after = os.times()
    cost += [time.perf_counter() - start, sum(after[:4]) - sum(before[:4])]


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.evaluation",
        description=first_line(__doc__),
        examples=("python -m benchmarks.evaluation --rounds 3",),
    )
    made.add_argument("--rounds", type=int, default=3, help="Number of rounds; what is compared takes turns.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    options = parser().parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), options.rounds)


if __name__ == "__main__":
    sys.exit(run_program(main))
