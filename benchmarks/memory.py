"""Peak memory of a training process for several global batch sizes, at a fixed chunk budget.

    python -m benchmarks.memory [--batches 64 1024 16384]

One rank trains one step on the miniature, in a separate process for each size. The memory that must grow is listed too:
the embeddings of all items with their gradients, and the pairs' undecoded bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data_prep.conversion import convert
from data_prep.mini.models.phi3_v import LANGUAGE
from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from data_prep.source import SourceData
from vlm2vec.batches import GlobalOrder
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.shards import ShardSet

SEED = 42
MIB = 2**20
# Copies of the embeddings: gathered, in the order of the items, by chunks; and the gradients of these.
EMBEDDING_COPIES = 6
TRAIN_AND_TELL = """
import resource, sys
from vlm2vec.train import run
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.ranks import close_ranks, initialize_ranks
run(parse_arguments(sys.argv[1:]), initialize_ranks(600))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
close_ranks()
"""


def peak_bytes(model: Path, shards: Path, run: Path, global_batch_size: int) -> int:
    """Peak resident memory of a process that trains one step."""
    flags = [
        *("--model_name", str(model), "--dataset_name", str(shards), "--output_dir", str(run)),
        *("--deepspeed", "ds_configs/zero2.json", "--global_batch_size", str(global_batch_size)),
        *("--max_steps", "1", "--chunk_tokens", "512", "--no_grad_chunk_tokens", "512"),
        *("--dataloader_num_workers", "0", "--seed", str(SEED)),
    ]
    # Freed crops are returned to the system at once, so that the peak shows live memory, not the allocator's cache.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_TELL, *flags],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1200,
    )
    return int(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("peak")))


def bytes_that_grow(shards: ShardSet, global_batch_size: int) -> int:
    """Embeddings and undecoded samples of the batch that `peak_bytes` trains."""
    batch = GlobalOrder(shards.num_samples, global_batch_size, SEED).batch(0)
    items = set()
    for subset, position in zip(batch.subsets, batch.positions, strict=True):
        sample = shards.read(shards.subsets[subset], int(position))
        items |= {sample.query, sample.positive}
    undecoded = sum(len(item.text) + sum(map(len, item.images)) for item in items)
    width: int = LANGUAGE["hidden_size"]
    return undecoded + EMBEDDING_COPIES * 4 * width * len(items)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.memory",
        description=first_line(__doc__),
        examples=("python -m benchmarks.memory --batches 64 1024 16384",),
    )
    made.add_argument("--batches", type=int, nargs="+", default=[64, 1024, 16384], help="Global batch sizes in pairs.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # The miniature has 14,900 pairs.
        build_mini_mmeb(work / "mini", seed=0, scale=max(0.1, 1.05 * max(options.batches) / 14_900))
        train = work / "mini" / TRAIN_FOLDER
        convert(SourceData(train, train, ["all"]), work / "shards")
        build_mini_model(train, work / "model")
        shards = ShardSet.open(str(work / "shards"))
        print("| global batch | peak, MiB | embeddings and undecoded pairs, MiB | the rest, first = 1 |")
        print("| --- | --- | --- | --- |")
        first = None
        for size in options.batches:
            peak = peak_bytes(work / "model", work / "shards", work / f"run-{size}", size)
            grows = bytes_that_grow(shards, size)
            first = first or peak - grows
            print(f"| {size:,} | {peak / MIB:.0f} | {grows / MIB:.1f} | {(peak - grows) / first:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_program(main))
