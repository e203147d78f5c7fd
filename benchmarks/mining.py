"""Time and memory of `data_prep.mine`: ranking a million pairs, and a smaller run that includes encoding.

    python -m benchmarks.mining [--subsets 20] [--encoded_rows 20000] [--cluster_method greedy]

The first run mines subsets of 50,000 pairs whose items are already encoded (vectors of 64 numbers, queries near their
targets): it plans, ranks every target of a subset for each query, applies the rules, cuts the graph and writes. The
second run does everything, on the pairs of benchmarks.million_rows with the tiny model. Both use two ranks with one
thread each.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

from benchmarks.evaluation import build_miniature
from benchmarks.million_rows import measure, write_source
from data_prep.command_line import positive
from data_prep.mine import store_folder
from data_prep.mining.embed import Measures, ShardItems, measures_file
from data_prep.mining.settings import CLUSTER_METHODS, GREEDY
from data_prep.mining.teacher import TeacherFolder
from vlm2vec.errors import run_program
from vlm2vec.evaluation.vector_store import VectorStore
from vlm2vec.inputs.packing import DEFAULT_BATCH_TOKENS_CPU
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.mmeb import MMEB
from vlm2vec.shards import ShardSet
from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.index import write_index
from vlm2vec.shards.manifest import Manifest, ShardRecord, SubsetRecord
from vlm2vec.shards.schema import shard_name

HIDDEN = 64
ROWS_A_SUBSET = 50_000
SPAN_BYTES = 2048
# Rows whose vectors are near a common point, like those of a topic.
_TOPIC_ROWS = 200
_TOKENS = 24


def write_shards(root: Path, num_subsets: int, count: int = ROWS_A_SUBSET) -> None:
    """Writes the indexes of distinct text pairs, and a manifest of empty (sparse) tars."""
    subsets = {}
    for number, subset in enumerate(MMEB.train_subsets[-num_subsets:]):
        folder, name = root / subset.name, shard_name(subset.name, 0)
        folder.mkdir(parents=True)
        hashes = 1 + 2 * (number * count + np.arange(count))
        entries = [
            IndexEntry(i, i * SPAN_BYTES, SPAN_BYTES, 0, ItemEntry(80, code), ItemEntry(80, code + 1))
            for i, code in enumerate(hashes.tolist())
        ]
        digest = write_index(folder / f"{name}.parquet", entries)
        with open(folder / f"{name}.tar", "wb") as tar:
            tar.truncate(SPAN_BYTES * count)
        record = ShardRecord(name, SPAN_BYTES * count, "0" * 64, digest, count, (0, count), {}, 0, 0, 0)
        subsets[subset.name] = SubsetRecord((), (record,))
    Manifest({}, subsets).write(root)


def write_vectors(root: Path, model: Path, embeddings: Path) -> None:
    """Writes item sizes and vectors as if a run had been killed before ranking."""
    shards, teacher = ShardSet.open(root), TeacherFolder.find(str(model)).record
    items = ShardItems.find(shards)
    folder = store_folder(embeddings, teacher, shards, torch.device("cpu"), DEFAULT_BATCH_TOKENS_CPU)
    folder.mkdir(parents=True)
    tokens, none = np.full(len(items), _TOKENS, np.int32), np.zeros(len(items), np.int32)
    measured = Measures(np.arange(len(items), dtype=np.int64), tokens, none, none)
    for number, name in enumerate(shards.subsets):
        own = items.of_subset(number)
        columns = {column: values[own] for column, values in vars(measured).items()}
        np.savez(measures_file(folder, name), allow_pickle=False, **columns)
    plan = measured.plan(DEFAULT_BATCH_TOKENS_CPU, teacher.digest)
    store = VectorStore(folder)
    store.write_plan(plan)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (len(plan.order), HIDDEN))
    for number, name in enumerate(shards.subsets):
        generator = np.random.default_rng(number)
        query, target = items.numbers[name]
        topics = generator.normal(size=(len(query) // _TOPIC_ROWS + 1, HIDDEN)).astype(np.float32)
        middle = topics[generator.integers(0, len(topics), len(query))]
        middle = middle + 0.6 * generator.normal(size=middle.shape).astype(np.float32)
        for side in (query, target):
            noise = 0.4 * generator.normal(size=middle.shape).astype(np.float32)
            vectors[plan.position[side]] = middle + noise
    vectors.flush()


def run(root: Path, num_subsets: int, encoded_rows: int, method: str) -> None:
    """Builds the data, mines them and prints time and memory."""
    with redirect_stdout(sys.stderr):
        _, model = build_miniature(root)
    write_shards(root / "ready", num_subsets)
    write_vectors(root / "ready", model, root / "embeddings")
    names = list(write_source(root / "MMEB-train", encoded_rows))
    source = ["--dataset_name", str(root / "MMEB-train"), "--subset_name", *names, "--output_dir", str(root / "shards")]
    measure([sys.executable, "-m", "data_prep.convert", *source])
    print("| what | pairs | s | processor s | peak MB |\n| --- | --- | --- | --- | --- |", flush=True)
    programs = {
        f"plan, rank, choose, clusters ({method}): vectors ready": (
            root / "ready",
            num_subsets * ROWS_A_SUBSET,
            root / "embeddings",
        ),
        "everything": (root / "shards", encoded_rows, root / "own"),
    }
    for what, (shards, count, embeddings) in programs.items():
        output = root / f"mined-{shards.name}"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "data_prep.mine", str(shards), "--model_name", str(model), "--output_dir", str(output)),
            *("--embeddings_dir", str(embeddings), "--cluster_method", method, "--dataloader_num_workers", "0"),
        ]
        seconds, processor, megabytes = measure(command)
        print(f"| {what} | {count:,} | {seconds:.0f} | {processor:.0f} | {megabytes:.0f} |", flush=True)
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}.")


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.mining",
        description=first_line(__doc__),
        examples=("python -m benchmarks.mining --subsets 20 --encoded_rows 20000",),
    )
    made.add_argument("--subsets", type=positive, default=20, help="Number of subsets of 50,000 pairs that are ranked.")
    made.add_argument("--encoded_rows", type=positive, default=20_000, help="Number of rows that are also encoded.")
    made.add_argument(
        "--cluster_method", choices=CLUSTER_METHODS, default=GREEDY, help="How the graph of hard pairs is cut."
    )
    return made


def main() -> None:
    """Parses the command line and runs in a temporary folder."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.subsets, arguments.encoded_rows, arguments.cluster_method)


if __name__ == "__main__":
    sys.exit(run_program(main))
