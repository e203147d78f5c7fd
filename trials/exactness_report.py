"""`make exactness`: the whole grid on 1, 2 and 4 ranks, written to docs/exactness.md.

python -m trials.exactness_report [--ranks 1 2 4] [--families phi3_v qwen2_vl ...] [--output docs/exactness.md]
"""

from __future__ import annotations

import argparse
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

from trials.exactness import (
    BF16_SAME_ORDER_TOLERANCE,
    BF16_TOLERANCE,
    CHUNKS,
    TOLERANCE,
    grid_of,
)
from trials.rig.launcher import run_ranks
from trials.rig.tiny import FAMILIES

SECONDS_A_CELL = 20
BF16_BOUNDS = {"bf16_tolerance": BF16_TOLERANCE, "same_order_tolerance": BF16_SAME_ORDER_TOLERANCE}
HEADER = """# Exactness

Written by `{command}`; do not edit. `make exactness` runs 1, 2 and 4 ranks and all model families.

Every cell is one cached step on real ranks (gloo, CPU, float32) whose gradient is compared with that of one graph over
the whole global batch, without cache and engine. Without dropout this is the textbook step: the global batch as one
chunk on one rank, one backward. With dropout, or with adapters on a bfloat16 base ("bf16"), it has the same chunks, as
other ones have other masks and rounding: every rank's chunks in one graph, one backward, one sum over ranks; and the
cell also fails unless pass 2 repeats pass 1's representations bit for bit. "checkpointed" cells also fail unless
decoder and trained tower run again in the backward pass.

The figure is the relative error, the norm of the gradient's error over the norm of the gradient, at most
{tolerance:.0e}. "bf16" under ZeRO-3, or with larger chunks in pass 1: at most {bf16_tolerance:.0e}, as bfloat16 adds up
in another order there; otherwise with such adapters at most {same_order_tolerance:.0e}.

The models are tiny, with random weights (`trials/rig/tiny.py`, `trials/rig/tiny_qwen.py`): Phi-3-V with every
combination; Qwen2-VL, Qwen2.5-VL (windows and a whole layer) and Qwen3-VL (deepstack) with images of several grids,
ZeRO-2 and ZeRO-3, mixed batches and batches of which all ranks but one have only text. "loss kit" has all options of
the loss (docs/losses.md), and the error of the temperatures' gradient too. What batches and chunks mean is in
`trials/exactness.py`.

{machine}

"""


def table(results: list[dict[str, Any]]) -> str:
    """One row a setting, one column a size of chunks; the largest error over the kinds of batches."""
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


def main() -> int:
    """Runs the grid; ends with 1 if a cell is out of bounds."""
    parser = argparse.ArgumentParser(prog="make exactness", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--output", type=Path, default=Path("docs/exactness.md"))
    options = parser.parse_args()
    cells = grid_of(options.families)
    results: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    start = time.monotonic()
    for ranks in options.ranks:
        print(f"{len(cells)} cells on {ranks} rank(s)", flush=True)
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
        HEADER.format(command=command, tolerance=TOLERANCE, machine=machine, **BF16_BOUNDS) + table(results)
    )
    for cell in bad:
        print("out of bounds:", cell)
    print(f"{machine} Table: {options.output}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
