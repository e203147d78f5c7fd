"""Time and memory of the global order over a million rows: the samples of a step and their distribution to ranks.

    python -m benchmarks.order [--rows 1000000]

The rows are index entries without images, in MMEB-train's proportions and with targets that repeat as often. Every line
of the table is a separate process, which opens the indexes and then requests steps of epochs 0 to 99 in random order.
The baseline sorts a column of random words per epoch, the usual way of shuffling.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.command_line import positive
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VProcessor
from vlm2vec.batches import GlobalOrder, Mixture, lay_out
from vlm2vec.errors import run_program
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.mmeb import MMEB, TrainSubset
from vlm2vec.shards import ShardSet
from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.index import write_index
from vlm2vec.shards.manifest import Manifest, ShardRecord, SubsetRecord
from vlm2vec.shards.schema import shard_name

GLOBAL_BATCH, RANKS, SEED = 1024, 8, 42
ROWS_PER_SHARD = 2048
SPAN_BYTES = 4096
STEPS = 40
EPOCHS = 100
MIXTURES = {
    "by size": Mixture(),
    "50,000 drawn of each subset": Mixture(max_samples=50_000),
    "temperature 2, units of 64": Mixture(temperature=2, unit=64),
    "blocks": Mixture(order="block"),
    "no duplicate targets": Mixture(distinct_positives=True),
}
BASELINE = "baseline: sorted random words"


def write_indexes(root: Path, rows: int) -> None:
    """Writes indexes and a manifest of empty (sparse) tars."""
    ends = np.cumsum([subset.rows for subset in MMEB.train_subsets], dtype=np.float64)
    counts = np.diff(np.rint(ends / ends[-1] * rows).astype(np.int64), prepend=0)
    subsets = {}
    for subset, count in zip(MMEB.train_subsets, counts.tolist(), strict=True):
        (root / subset.name).mkdir(parents=True)
        targets = _targets(subset, count)
        shards = [
            _write_shard(root / subset.name, shard_name(subset.name, number), start, targets[start:][:ROWS_PER_SHARD])
            for number, start in enumerate(range(0, count, ROWS_PER_SHARD))
        ]
        subsets[subset.name] = SubsetRecord((), tuple(shards))
    Manifest({}, subsets).write(root)


def _targets(subset: TrainSubset, rows: int) -> np.ndarray:
    """The targets' hashes: class labels, answers by Zipf's law, or one per row."""
    generator = np.random.default_rng(rows)
    names = generator.integers(-(2**62), 2**62, max(rows, 10_000))
    labels = {"ImageNet_1K": 1000, "N24News": 24, "HatefulMemes": 2, "VOC2007": 20, "SUN397": 397}
    if subset.name in labels:
        return names[generator.integers(0, labels[subset.name], rows)]
    if subset.meta_task == "vqa":
        return names[generator.zipf(1.3, rows) % 10_000]
    return names[:rows]


def _write_shard(folder: Path, name: str, start: int, targets: np.ndarray) -> ShardRecord:
    generator = np.random.default_rng([start, len(targets)])
    hashes = generator.integers(-(2**62), 2**62, len(targets)).tolist()
    lengths = generator.integers(20, 200, (2, len(targets))).tolist()
    widths, heights = generator.integers(200, 1000, (2, len(targets))).tolist()
    rows = [
        IndexEntry(
            *(start + i, i * SPAN_BYTES, SPAN_BYTES, 0),
            ItemEntry(lengths[0][i], hashes[i], ((widths[i], heights[i]),), (0,)),
            ItemEntry(lengths[1][i], target),
        )
        for i, target in enumerate(targets.tolist())
    ]
    digest = write_index(folder / f"{name}.parquet", rows)
    size = SPAN_BYTES * len(rows)
    with open(folder / f"{name}.tar", "wb") as tar:
        tar.truncate(size)
    return ShardRecord(name, size, "0" * 64, digest, len(rows), (start, start + len(rows)), {}, 0, 0, 0)


def measure(name: str, root: Path) -> dict[str, float]:
    """Measures one line of the table in this process: milliseconds and MiB."""
    gc.freeze()  # as the loader's processes do
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    shards = ShardSet.open(root)
    opened = time.perf_counter() - start
    index = _memory("VmRSS") - before
    inputs = ItemEncoderInputs(Phi3VProcessor.without_tokenizer(Phi3VConfig(), num_crops=4), max_len=256)
    if name == BASELINE:
        steps_per_epoch = sum(shards.num_samples.values()) // GLOBAL_BATCH
        action: Callable[[int], object] = _Sorted(list(shards.num_samples.values())).batch
    else:
        mixture = MIXTURES[name]
        hashes = (lambda subset: shards.columns(subset)["positive_hash"]) if mixture.distinct_positives else None
        order = GlobalOrder(shards.num_samples, GLOBAL_BATCH, SEED, mixture, hashes)
        steps_per_epoch = order.steps_per_epoch

        def action(step: int) -> object:
            return lay_out(order.batch(step), shards, inputs.cost, RANKS)

    generator = np.random.default_rng(0)
    first = [_milliseconds(action, epoch * steps_per_epoch + 3) for epoch in generator.integers(1, EPOCHS, 3).tolist()]
    here = int(generator.integers(1, EPOCHS)) * steps_per_epoch
    action(here)
    later = [_milliseconds(action, here + step) for step in generator.integers(1, steps_per_epoch, STEPS).tolist()]
    return {
        "open": 1000 * opened,
        "index": index,
        "first": float(np.median(first)),
        "later": float(np.median(later)),
        "worst": max(later),
        "memory": _memory("VmHWM") - before,
    }


class _Sorted:
    """The baseline: an epoch's slots and a permutation of every subset, from sorted random words."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.epoch = sizes, -1
        self.steps = sum(sizes) // GLOBAL_BATCH

    def batch(self, step: int) -> object:
        epoch, step = divmod(step, self.steps)
        if epoch != self.epoch:
            self.epoch = epoch
            words = np.random.Philox(key=[SEED, epoch])
            self.slots = np.argsort(words.random_raw(sum(self.sizes)), kind="stable")
            self.rows = np.concatenate([np.argsort(words.random_raw(size), kind="stable") for size in self.sizes])
        return self.rows[self.slots[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]]


def _milliseconds(action: Callable[[int], object], step: int) -> float:
    """Processor time, which does not depend on the machine's other load."""
    start = time.process_time()
    action(step)
    return 1000 * (time.process_time() - start)


def _memory(field: str) -> float:
    """A memory value of this process in MiB, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.order",
        description=first_line(__doc__),
        examples=("python -m benchmarks.order --rows 1000000",),
    )
    made.add_argument("--rows", type=positive, default=1_000_000, help="Number of rows.")
    made.add_argument("--line", help=argparse.SUPPRESS)
    made.add_argument("--indexes", type=Path, help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Prints the table in Markdown."""
    arguments = parser().parse_args()
    if arguments.line:
        print(json.dumps(measure(arguments.line, arguments.indexes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_indexes(Path(folder) / "shards", arguments.rows)
        print(
            f"{arguments.rows:,} rows, {len(MMEB.train_subsets)} subsets, batches of {GLOBAL_BATCH:,}, {RANKS} ranks.\n"
        )
        columns = ["order", "open, s", "first step of an epoch, ms", "any other, ms", "slowest of them, ms"]
        print(f"| {' | '.join([*columns, 'indexes, MiB', 'peak, MiB'])} |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name in [*MIXTURES, BASELINE]:
            command = [sys.executable, "-m", "benchmarks.order", "--line", name, "--indexes", f"{folder}/shards"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {name} | {found['open'] / 1000:.1f} | {found['first']:.0f} | {found['later']:.0f} | "
                f"{found['worst']:.0f} | {found['index']:.0f} | {found['memory']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run_program(main))
