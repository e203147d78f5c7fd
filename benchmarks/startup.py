"""Import time and time to the first step, compared with the libraries that every such program imports.

    python -m benchmarks.startup [--rounds 3] [--work FOLDER]

Every measurement is a separate process, the rounds alternate, and the best round counts, because other programs can
only slow one down. The training program trains two steps of the miniature on one rank; a moment is the time at which
its line is printed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workloads import prepare_miniature
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

BASELINE = "import torch, transformers, deepspeed"
STATEMENTS = (
    BASELINE,
    "import vlm2vec",
    "from vlm2vec.shards import ShardSet",
    "from vlm2vec import VLM2Vec",
    "import vlm2vec.train",
)
# The moments of a run, and the first word of their lines.
MOMENTS = {"everything is built": "device", "first step is done": "1/2", "second step is done": "2/2"}


def import_seconds(statement: str) -> tuple[float, float]:
    """Wall and processor seconds of a Python process that runs one statement."""
    before, start = _processor_seconds(), time.perf_counter()
    command, nowhere = [sys.executable, "-c", statement], subprocess.DEVNULL
    subprocess.run(command, check=True, timeout=300, stdout=nowhere, stderr=nowhere)
    return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def moments_of_a_run(work: Path) -> dict[str, float]:
    """Seconds from the start of a training program to each of `MOMENTS`."""
    with tempfile.TemporaryDirectory() as output:
        flags = [
            *("--config", "launch/recipes/mini.yaml", "--deepspeed", "ds_configs/zero2.json"),
            *("--model_name", str(work / "model"), "--dataset_name", str(work / "shards"), "--output_dir", output),
            *("--max_steps", "2", "--warmup_steps", "0", "--logging_steps", "1", "--global_batch_size", "32"),
        ]
        start = time.perf_counter()
        found: dict[str, float] = {}
        with subprocess.Popen(
            [sys.executable, "-m", "vlm2vec.train", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as program:
            assert program.stdout is not None
            for line in program.stdout:
                for moment, word in MOMENTS.items():
                    if line.split()[:1] == [word]:
                        found.setdefault(moment, time.perf_counter() - start)
        if len(found) < len(MOMENTS):
            raise SystemExit(f"the run ended with {program.returncode} after {list(found)}")
    return found


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.startup",
        description=first_line(__doc__),
        examples=("python -m benchmarks.startup --rounds 3",),
    )
    made.add_argument("--rounds", type=int, default=3, help="Number of rounds; what is compared takes turns.")
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="Folder for the miniature; kept, and used again if it is there. If not given: a temporary one.",
    )
    return made


def main() -> None:
    """Prints both tables in Markdown."""
    options = parser().parse_args()
    times: dict[str, list[tuple[float, float]]] = {statement: [] for statement in STATEMENTS}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        prepare_miniature(work)
        for _ in range(options.rounds):
            for statement in STATEMENTS:
                times[statement].append(import_seconds(statement))
            runs.append(moments_of_a_run(work))
    best = {name: [min(column) for column in zip(*each, strict=True)] for name, each in times.items()}
    print("| process | wall s | processor s | processor s, baseline = 1 |\n| --- | --- | --- | --- |")
    for name, (wall, busy) in best.items():
        print(f"| `{name}` | {wall:.2f} | {busy:.2f} | {busy / best[BASELINE][1]:.2f} |")
    print("\n| a training program, from its start to | wall s | baseline's import = 1 |\n| --- | --- | --- |")
    for moment in MOMENTS:
        wall = min(run[moment] for run in runs)
        print(f"| {moment} | {wall:.1f} | {wall / best[BASELINE][0]:.1f} |")
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    sys.exit(run_program(main))
