"""The loader compared with plain decoding and cropping of the same images, and its memory over many steps.

    python -m benchmarks.loader [--pairs 192] [--rounds 3] [--memory_steps 10000]

Photographs of 640 x 480 are decoded and cut into 4 crops, once by a plain DataLoader over a list of undecoded images
(the baseline) and once by the loader: order, layout, reads, tokenizing, chunks. Both use one worker. Processor seconds
of all processes are measured, because they do not depend on the machine's other load. Memory is the private memory of
all loader processes, measured between steps.
"""

from __future__ import annotations

import gc
import io
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_prep.command_line import positive
from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from data_prep.source import SourceData
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.phi3_v.image_processor import Phi3VImageProcessor
from vlm2vec.batches import BatchReader, ChunkSizes, GlobalOrder, PlanSource, TrainingBatches
from vlm2vec.errors import run_program
from vlm2vec.images.decode import open_image
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.shards import ShardSet

SUBSET = "Photographs"
GLOBAL_BATCH = 32
CROPS = 4
_DIFFERENT = 16
_WINDOWS = 10


class Images(Dataset[torch.Tensor]):
    """The baseline: undecoded images in memory, decoded and cropped on demand."""

    def __init__(self, images: Sequence[bytes], processor: Phi3VImageProcessor) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.processor.crops(open_image(self.images[index], "image"))


def write_photographs(root: Path, pairs: int) -> None:
    """Writes one subset: queries are a photograph of 640 x 480 and a question, targets are words."""
    folder = root / "images" / SUBSET / "Train"
    folder.mkdir(parents=True)
    (root / SUBSET).mkdir()
    paths = []
    for number in range(pairs):
        paths.append(f"images/{SUBSET}/Train/{number}.jpg")
        (root / paths[-1]).write_bytes(_photograph(number % _DIFFERENT) + b"%08d" % number)
    rows = {"qry": [f"<|image_1|>\nWhat is in picture {number}?\n" for number in range(pairs)], "qry_image_path": paths}
    rows |= {"pos_text": [f"answer {number}" for number in range(pairs)], "pos_image_path": [""] * pairs}
    pq.write_table(pa.table(rows), root / SUBSET / "original-00000-of-00001.parquet")


def _photograph(seed: int) -> bytes:
    """Smooth noise, which takes about as many bytes as a photograph as JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def source(shards: ShardSet, inputs: ItemEncoderInputs, steps: int, global_batch: int) -> PlanSource:
    """Plans in which every image runs once, in chunks of a few images."""
    order = GlobalOrder(shards.num_samples, global_batch, seed=0)
    sizes = ChunkSizes(TokenBudget(8192), keep_graphs=10**6)
    return PlanSource(order, BatchReader(shards, inputs, sizes, rank=0), 1, 0, steps)


def run_loader(plans: PlanSource) -> None:
    """Loads all chunks of all steps."""
    for batch in TrainingBatches(plans, num_workers=1):
        for phase in batch.chunks.phases:
            for _ in phase.chunks:
                pass


def seconds_of(action: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds, including those of worker processes that have ended."""
    gc.collect()  # ends the workers of an earlier round
    before, start = _processor_seconds(), time.perf_counter()
    action()
    gc.collect()
    return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(work: Path, pairs: int, rounds: int) -> None:
    """Prints the times of the loader and the baseline."""
    write_photographs(work / "source", pairs)
    convert(
        SourceData(work / "source", work / "source", [SUBSET]),
        work / "shards",
        replace(DEFAULT_OPTIONS, check_images="none"),
    )
    shards = ShardSet.open(work / "shards")
    processor = Phi3VProcessor(_tokenizer(work), Phi3VImageProcessor(CROPS))
    inputs = ItemEncoderInputs(processor, max_len=256)
    steps = pairs // GLOBAL_BATCH
    plans = source(shards, inputs, steps, GLOBAL_BATCH)
    used = [position for step in range(steps) for position in plans.order.batch(step).positions.tolist()]
    images = [shards.read(SUBSET, position).query.image or b"" for position in used]
    baseline = DataLoader(Images(images, processor.image_processor), batch_size=None, num_workers=1)

    def run_baseline() -> None:
        for _ in baseline:
            pass

    actions = {"plain DataLoader over undecoded images": run_baseline, "loader": lambda: run_loader(plans)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action))
    best = {name: [min(column) for column in zip(*runs, strict=True)] for name, runs in times.items()}
    first = next(iter(best.values()))
    print(f"{len(images)} photographs of 640 x 480, {CROPS} crops, one worker, best of {rounds} rounds.\n")
    print("| | processor s | ratio | wall s | ratio |\n| --- | --- | --- | --- | --- |")
    for name, (wall, busy) in best.items():
        print(f"| {name} | {busy:.2f} | {busy / first[1]:.2f} | {wall:.2f} | {wall / first[0]:.2f} |", flush=True)


def _tokenizer(work: Path):  # type: ignore[no-untyped-def]
    """The miniature's tokenizer."""
    build_mini_mmeb(work / "mini", seed=0, scale=0.02)
    build_mini_model(work / "mini" / TRAIN_FOLDER, work / "model", seed=0)
    return Phi3VProcessor.from_pretrained(work / "model").tokenizer


def memory_over_steps(shards: ShardSet, inputs: ItemEncoderInputs, steps: int, windows: int) -> Iterator[float]:
    """Private memory of a running loader's processes in MiB, after each window of steps."""
    for batch in TrainingBatches(source(shards, inputs, steps, global_batch=8), num_workers=1):
        for phase in batch.chunks.phases:
            for _ in phase.chunks:
                pass
        if (batch.header.step + 1) % (steps // windows) == 0:
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            yield sum(process.memory_full_info().uss for process in processes) / 2**20


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.loader",
        description=first_line(__doc__),
        examples=("python -m benchmarks.loader --pairs 192 --rounds 3",),
    )
    made.add_argument("--pairs", type=positive, default=192, help="Number of photographs.")
    made.add_argument("--rounds", type=positive, default=3, help="Number of rounds; what is compared takes turns.")
    made.add_argument(
        "--memory_steps",
        type=positive,
        default=10_000,
        help="Number of steps of 8 pairs over which memory is measured.",
    )
    return made


def main() -> None:
    """Prints both tables in Markdown."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        compare(work, arguments.pairs, arguments.rounds)
        train = work / "mini" / TRAIN_FOLDER
        convert(SourceData(train, train, ["all"]), work / "mini_shards")
        inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(work / "model"), max_len=64)
        shards = ShardSet.open(work / "mini_shards")
        held = list(memory_over_steps(shards, inputs, arguments.memory_steps, _WINDOWS))
    print(f"\nMemory of all processes over {arguments.memory_steps:,} steps of 8 pairs of the miniature, MiB:\n")
    numbers = [arguments.memory_steps // _WINDOWS * (window + 1) for window in range(_WINDOWS)]
    print(f"| after step | {' | '.join(f'{number:,}' for number in numbers)} |\n| {'--- | ' * (_WINDOWS + 1)}")
    print(f"| held | {' | '.join(f'{amount:.0f}' for amount in held)} |")
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    sys.exit(run_program(main))
