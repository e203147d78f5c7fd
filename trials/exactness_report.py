"""`make exactness`: runs the whole grid on 1, 2 and 4 ranks and writes docs/exactness.md.

python -m trials.exactness_report [--ranks 1 2 4] [--families phi3_v qwen2_vl ...] [--output docs/exactness.md]
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trials.exactness_grid import BF16_TOLERANCE, CHUNKS, TOLERANCE, grid_of
from trials.rig.launcher import run_ranks
from trials.rig.tiny import FAMILIES
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.words import counted

SECONDS_A_CELL = 20
HEADER = """# Exactness

Written by `{command}`; do not edit. `make exactness` runs 1, 2 and 4 ranks and all model families.

Every cell is one cached step on real ranks (gloo, CPU, float32). Its gradient is compared with that of a reference: one
autograd graph over the whole global batch, without cache and engine.

- Without dropout, the reference is the textbook step: the global batch is one chunk on one rank, one backward pass.
- With dropout, or with adapters on a bfloat16 base ("bf16"), the reference has the same chunks as the step, because
  different chunks have different masks and rounding: all chunks of all ranks in one graph, one backward pass, one sum
  over the ranks. The cell also fails unless pass 2 repeats the representations of pass 1 bit for bit.
- "checkpointed" cells also fail unless decoder and trained tower are recomputed in the backward pass.

The numbers are relative errors: the norm of the gradient's error divided by the norm of the gradient. The bound is
{tolerance:.0e}, also for "bf16", except with larger chunks in pass 1 and for LoRA under ZeRO-3, where bfloat16 numbers
are added in a different order: there it is {bf16_tolerance:.0e}.

A "bf16" cell compares two things and shows the larger error: the loss's gradient of the representations, and the
model's gradient behind it. In one comparison of both, a difference of 2e-7 in the first would round numbers of the
second to the next bfloat16, on some processors. The first must be within {tolerance:.0e} in every cell.

The models are tiny, with random weights (`trials/rig/tiny.py`, `trials/rig/tiny_qwen.py`). Phi-3-V runs every
combination. Qwen2-VL, Qwen2.5-VL (window layers and one full-attention layer) and Qwen3-VL (deepstack) run with images
of several grids under ZeRO-2 and ZeRO-3, with mixed batches and with batches in which all ranks but one have only text.
"loss kit" uses all options of the loss (docs/losses.md); its error includes the gradient of the temperatures.
`trials/exactness_grid.py` defines batches and chunks.

{machine}

"""


def table(results: list[dict[str, Any]]) -> str:
    """One row per setting, one column per chunk size, with the largest error of each cell."""
    largest: dict[tuple[Any, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for cell in results:
        row = (cell["family"], cell["ranks"], cell["stage"], cell["kind"], cell["dropout"], cell["batch"])
        largest[row][cell["chunks"]] = max(largest[row][cell["chunks"]], cell["error"])
    lines = [
        f"| family | ranks | ZeRO | trained | dropout | batch | {' | '.join(CHUNKS)} |",
        f"| --- | --- | --- | --- | --- | --- |{' --- |' * len(CHUNKS)}",
    ]
    for row, errors in largest.items():
        cells = " | ".join(f"{errors[name]:.1e}" if name in errors else "-" for name in CHUNKS)
        lines.append(f"| {' | '.join(str(each) for each in row)} | {cells} |")
    return "\n".join(lines) + "\n"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.exactness_report",
        description="Measures the whole exactness grid on 1, 2 and 4 ranks and writes docs/exactness.md.",
        examples=("python -m trials.exactness_report --ranks 1 2 --families phi3_v",),
    )
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="Numbers of ranks.")
    made.add_argument(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=FAMILIES,
        metavar="NAME",
        help=f"Model families, of {', '.join(FAMILIES)}.",
    )
    made.add_argument(
        "--output", type=Path, default=Path("docs/exactness.md"), metavar="FILE", help="Markdown file to write."
    )
    return made


def main() -> int:
    """Runs the grid; returns 1 if a cell is out of bounds."""
    options = parser().parse_args()
    cells = grid_of(options.families)
    results: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    start = time.monotonic()
    for ranks in options.ranks:
        print(f"{len(cells)} cells on {counted(ranks, 'rank')}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            (work / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells]))
            flags = ["--cells", str(work / "cells.json"), "--output", str(work / "errors.json")]
            run_ranks(ranks, ["-m", "trials.exactness", *flags], work, timeout=SECONDS_A_CELL * len(cells))
            found = json.loads((work / "errors.json").read_text())
            results += [{"ranks": ranks, **each} for each in found]
            bad += [each for cell, each in zip(cells, found, strict=True) if not each["error"] <= cell.tolerance]
        print(f"  largest error {max(each['error'] for each in results if each['ranks'] == ranks):.1e}", flush=True)
    minutes = (time.monotonic() - start) / 60
    largest = max(each["error"] for each in results)
    machine = (
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {platform.machine()}: {len(results)} cells in "
        f"{minutes:.0f} minutes, {len(bad)} out of bounds, largest {largest:.1e}."
    )
    chosen = "" if options.families == FAMILIES else f" --families {' '.join(options.families)}"
    command = f"python -m trials.exactness_report --ranks {' '.join(map(str, options.ranks))}{chosen}"
    options.output.write_text(
        HEADER.format(command=command, tolerance=TOLERANCE, machine=machine, bf16_tolerance=BF16_TOLERANCE)
        + table(results)
    )
    for cell in bad:
        print("out of bounds:", cell)
    print(f"{machine} Table: {options.output}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
