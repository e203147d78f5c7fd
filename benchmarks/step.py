"""Pairs per second of a training step: this project, the original's algorithm, sentence-transformers' cached loss.

    python -m benchmarks.step [--work FOLDER] [--rounds 5] [--pairs 128]

All use one process, the same batches, the same initial weights, AdamW on all parameters, and images that are already
decoded. All compute the same loss, which the program checks in the first round. The rounds alternate between them, and
the result is the median of the rounds' ratios. This project's code runs twice: with one kept graph, the default on a
CPU, and with `--keep_graphs` for the whole batch, which fits into memory at these sizes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cached_step import CachedStepRun
from benchmarks.original_step import OriginalStep
from benchmarks.sentence_transformers_step import SentenceTransformersStep
from benchmarks.workloads import Workload, miniature, mmeb_mix
from vlm2vec.batches import ChunkSizes
from vlm2vec.errors import run_program
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.flags.training import NO_GRAD_FACTOR

TEMPERATURE = 0.02
LEARNING_RATE = 1e-4
OURS = "this code"
KEPT = "this code, all graphs kept"

Step = Callable[[Sequence[tuple[int, int]]], float]


def cached_step(workload: Workload, keep_graphs: int) -> CachedStepRun:
    """The step with the chunks of a run: the budget, and four times the budget in pass 1."""
    sizes = ChunkSizes(TokenBudget(workload.chunk_tokens), NO_GRAD_FACTOR * workload.chunk_tokens, keep_graphs)
    return CachedStepRun(workload, sizes, TEMPERATURE, LEARNING_RATE)


def compare(workload: Workload, rounds: int) -> None:
    """Prints one row per kind of step."""
    steps: dict[str, Step] = {
        OURS: cached_step(workload, keep_graphs=1),
        KEPT: cached_step(workload, keep_graphs=len(workload.items)),
        "sentence-transformers": SentenceTransformersStep(workload, TEMPERATURE, LEARNING_RATE),
        "the original's algorithm": OriginalStep(workload, TEMPERATURE, LEARNING_RATE),
    }
    losses = {name: step(workload.batches[0]) for name, step in steps.items()}  # also warms up
    for name, loss in losses.items():
        if abs(loss - losses[OURS]) > 1e-4 * abs(losses[OURS]):
            raise SystemExit(f"{name} computes a different loss: {loss} instead of {losses[OURS]}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        batch = workload.batches[(1 + number) % len(workload.batches)]
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        pairs = len(workload.batches[0]) / statistics.median(times)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(times, seconds[OURS], strict=True))
        print(f"| {workload.name} | {name} | {pairs:.1f} | {ratio:.2f} |", flush=True)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.step",
        description=first_line(__doc__),
        examples=("python -m benchmarks.step --rounds 5 --pairs 128",),
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="Folder for the miniature; kept, and used again if it is there. If not given: a temporary one.",
    )
    made.add_argument("--rounds", type=int, default=5, help="Number of rounds; what is compared takes turns.")
    made.add_argument("--pairs", type=int, default=128, help="Pairs per batch.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    options = parser().parse_args()
    initialize_ranks(600)
    print("| batch | step | pairs/s | time, this code = 1 |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        compare(miniature(options.work or Path(folder), options.pairs, options.rounds + 1), options.rounds)
    # On a CPU, a pair with a full-size image costs a hundred times one of the miniature's.
    compare(mmeb_mix(max(10, options.pairs // 4), 2), options.rounds)
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
