"""Full-size Phi-3.5-V with random weights on one GPU: ceilings, exactness, training steps, memory.

    python -m benchmarks.gpu                          everything; without a GPU, rows say "not measured"
    python -m benchmarks.gpu --pairs 24 --seconds 400 if time is short (benchmarks/gpu_first.sh does this)
    python -m benchmarks.gpu --sections lora full     some of the tables
    python -m benchmarks.gpu --sections compiled.dora_compiled,dora_large
                                                      some rows of a table
    python -m benchmarks.gpu --tiny                   a few thousand weights on the CPU: tests that all rows run

Every row is printed and appended to a file as soon as it is measured. A row that fails shows the reason, and the next
one runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import ceilings, exactness, families, training
from benchmarks.gpu.bench import Setting
from benchmarks.gpu.model import MODELS, PHI3_V, Model
from benchmarks.gpu.rows import Recorder
from vlm2vec.device import asked_for_cpu
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.messages.words import counted
from vlm2vec.ranks import close_ranks, initialize_ranks

# The names of each table's rows, if they can be chosen.
TABLES: dict[str, Sequence[str]] = {
    "ceilings": (),
    "exactness": tuple(exactness.SETTINGS),
    "ranks": (),
    "family": (),
    "tower": (),
    **{section: tuple(variants) for section, (_, variants) in training.SECTIONS.items()},
}
# One rank's share of a global batch of 1,024 on 8 GPUs.
PAIRS = 128
TINY_PAIRS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables in Markdown; returns 1 if a row failed."""
    options = parser().parse_args(argv)
    device = torch.device("cpu")
    name = None
    if options.tiny or (torch.cuda.is_available() and not asked_for_cpu()):
        device = initialize_ranks(600)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    recorder = Recorder(options.output, options.seconds, name)
    pairs = TINY_PAIRS if options.tiny else options.pairs
    scale = (
        "tiny model, numbers mean nothing" if options.tiny else f"{pairs} pairs, {counted(options.steps, 'timed step')}"
    )
    print(f"{options.family}, {name or 'no GPU'}, torch {torch.__version__}; {scale}", flush=True)
    setting = Setting(device, Model(options.family, options.tiny), pairs, options.steps, options.peak_tflops)
    for section, rows in options.sections or _default_sections(options.family):
        if section == "ceilings":
            ceilings.run(recorder, device, options.tiny)
        elif section == "exactness":
            exactness.run(recorder, device, options.tiny, rows)
        elif section == "ranks":
            exactness.run_two_ranks(recorder, device, options.tiny, options.rank_seconds)
        elif section == "family":
            families.run_exactness(recorder, device, options.family)
            families.run_waits(recorder, device, options.family)
        elif section == "tower":
            families.run_tower(recorder, setting)
        else:
            training.run(recorder, setting, section, rows)
    close_ranks()
    return 1 if recorder.num_failed else 0


def _default_sections(family: str) -> list[tuple[str, tuple[str, ...]]]:
    """Ceilings and the exactness grids run for Phi-3-V only; other families have their own tables."""
    left_out = ("family", "tower") if family == PHI3_V else ("ceilings", "exactness", "ranks")
    return [(name, ()) for name in TABLES if name not in left_out]


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.gpu",
        description=first_line(__doc__) + " Every row is printed and appended to a file as it comes.",
        examples=(
            "python -m benchmarks.gpu --pairs 24 --seconds 400",
            "python -m benchmarks.gpu --sections compiled.dora_compiled,dora_large full",
        ),
    )
    add = made.add_argument
    add(
        "--sections",
        nargs="+",
        type=_table,
        metavar="TABLE[.ROW,...]",
        help=f"Tables, in this order: {', '.join(TABLES)}. If not given: all that the family has.",
    )
    add("--family", choices=MODELS, default=PHI3_V, help="Model family.")
    add("--pairs", type=int, default=PAIRS, help="Pairs per step.")
    add("--steps", type=int, default=1, help="Timed steps of a row, after one that warms up.")
    add("--seconds", type=float, default=3000, help="Start no row later than this many seconds after the start.")
    add("--rank_seconds", type=float, default=60, help="Time limit of each run of two ranks, in seconds.")
    add("--peak_tflops", type=float, help="Peak TFLOP/s of the GPU in bfloat16, if its name is not known.")
    add(
        "--output",
        type=Path,
        default=Path("gpu_out/rows.jsonl"),
        metavar="FILE",
        help="File to which rows are appended.",
    )
    add("--tiny", action="store_true", help="Use a tiny model, on the CPU if there is no GPU.")
    return made


def _table(name: str) -> tuple[str, tuple[str, ...]]:
    """A table and its chosen rows; none means all."""
    table, _, rows = name.partition(".")
    chosen = tuple(rows.split(",")) if rows else ()
    if table not in TABLES:
        raise argparse.ArgumentTypeError(f"invalid choice: {table!r} (choose from {', '.join(TABLES)})")
    for row in chosen:
        if row not in TABLES[table]:
            known = ", ".join(TABLES[table]) or "no rows to choose"
            raise argparse.ArgumentTypeError(f"invalid choice: {row!r} ({table} has {known})")
    return table, chosen


if __name__ == "__main__":
    sys.exit(run_program(main))
