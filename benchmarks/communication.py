"""Collectives and bytes sent per step, compared with one gradient reduction per chunk.

    python -m benchmarks.communication [--chunks 8]

Two ranks (gloo) train the model of benchmarks.overhead. The bytes are those of whole tensors: everything that is
reduced, gathered or scattered, counted once per call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.overhead import LENGTH, PAIRS, texts
from trials.rig.collectives import Collectives
from trials.rig.engines import FETCH_WHEN_USED, build_engine
from trials.rig.tiny import processed_inputs
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.contrastive import CachedStep, ContrastiveLoss, Pairs, StepChunks, StepLayout
from vlm2vec.contrastive.reduction import at_last_backward
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks

RANKS = 2
MIB = 2**20
KINDS = {"allreduce_": "all-reduce", "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter"}


class ReducedEveryChunk(CachedStep):
    """The step without coalescing: ZeRO-2 and 3 reduce at every backward pass."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reduce_gradients_once = at_last_backward


def measure(kind: type[CachedStep], stage: int, num_chunks: int) -> Counter[tuple[str, str]]:
    """Calls ("calls", kind) and bytes ("bytes", kind) of one step of this rank."""
    workload, rank = texts(), dist.get_rank()
    engine = build_engine(workload.encoder, stage, zero=FETCH_WHEN_USED)
    inputs = processed_inputs()
    half = len(workload.items) // RANKS
    own = workload.items[rank * half : (rank + 1) * half]
    size = half // num_chunks
    chunks = StepChunks.of([inputs.chunk(own[start : start + size]) for start in range(0, half, size)])
    layout = StepLayout(
        counts=(half,) * RANKS,
        local_order=torch.arange(half),
        pairs=Pairs(torch.arange(PAIRS), PAIRS + torch.arange(PAIRS)),
        rows=range(rank * PAIRS // RANKS, (rank + 1) * PAIRS // RANKS),
        digest=0,
    )
    step = kind(engine, ContrastiveLoss(0.05), inputs.chunk([ProcessedItem(torch.tensor([1]))]))
    with Collectives() as collectives:
        step(chunks, layout)
        engine.step()
    found: Counter[tuple[str, str]] = Counter()
    for _, operator, size_bytes in collectives.seen:
        if operator in KINDS:
            found["calls", KINDS[operator]] += 1
            found["bytes", KINDS[operator]] += size_bytes
    engine.destroy()
    return found


def print_row(stage: int, name: str, found: Counter[tuple[str, str]]) -> None:
    """One row of the table."""
    cells = [f"{found['calls', kind]} x, {found['bytes', kind] / MIB:.1f} MiB" for kind in KINDS.values()]
    total = sum(value for (what, _), value in found.items() if what == "bytes")
    print(f"| {stage} | {name} | {' | '.join(cells)} | {total / MIB:.1f} MiB |", flush=True)


def rank_main(num_chunks: int) -> None:
    """One rank; the first prints the table in Markdown."""
    initialize_ranks(120)
    is_first = dist.get_rank() == 0
    if is_first:
        print(f"{2 * PAIRS} texts of {LENGTH} tokens on {RANKS} ranks, {num_chunks} chunks per rank, no graph kept\n")
        print(
            f"| ZeRO | gradients reduced | {' | '.join(KINDS.values())} | all |\n| --- | --- | --- | --- | --- | --- |"
        )
    for stage in (1, 2, 3):
        for name, kind in (("once a step", CachedStep), ("once a chunk", ReducedEveryChunk)):
            found = measure(kind, stage, num_chunks)
            if is_first:
                print_row(stage, name, found)
    close_ranks()


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.communication",
        description=first_line(__doc__),
        examples=("python -m benchmarks.communication --chunks 8",),
    )
    made.add_argument("--chunks", type=int, default=8, help="Number of chunks of a step.")
    return made


def main() -> None:
    """Starts the ranks."""
    options = parser().parse_args()
    if "RANK" in os.environ:
        rank_main(options.chunks)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    command = [*launcher, "-m", "benchmarks.communication", "--chunks", str(options.chunks)]
    subprocess.run(command, check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    sys.exit(run_program(main))
