"""Checks this machine, the nodes of a hostfile and a folder of shards before a run.

    python -m vlm2vec.doctor [--hostfile FILE] [--dataset_name SHARDS] [--deepspeed FILE [--config RECIPE]]

Prints one line per check (ok, warn, fail) with its remedy. Exit code 1 if any check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import torch
from rich.console import Console
from rich.text import Text

from vlm2vec.device import asked_for_cpu
from vlm2vec.doctor.data import data_findings
from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.doctor.machine import machine_findings
from vlm2vec.doctor.nodes import node_findings, public_addresses
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser

# Number of ranks that the scripts in launch/ start where there is no GPU.
CPU_RANKS = 2
_COLORS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def findings(options: argparse.Namespace) -> Iterator[Finding]:
    """Runs all checks in order."""
    if options.config and options.deepspeed is None:
        raise InputError("--config without --deepspeed: a run needs both; add --deepspeed FILE")
    # Called after the search for an accelerator: planning may set the variable that asks for the CPU.
    needed = partial(needed_shared_memory, options.config, options.deepspeed) if options.config else None
    yield from machine_findings(options.deepspeed, needed)
    if options.hostfile is not None:
        yield from node_findings(options.hostfile)
    else:
        yield from public_addresses([])
    if options.dataset_name is not None:
        yield from data_findings(options.dataset_name)


def needed_shared_memory(recipe: Path, engine: Path) -> float:
    """Bytes of shared memory that a run takes if this machine is its only node.

    Raises:
        InputError: The recipe or the engine file is refused.
    """
    # Imported here: both import transformers, which takes seconds.
    from vlm2vec.plan.run_plan import read_plan
    from vlm2vec.plan.shared_memory import shared_memory

    num_ranks = CPU_RANKS if asked_for_cpu() else torch.accelerator.device_count() or CPU_RANKS
    return shared_memory(read_plan(["--config", str(recipe), "--deepspeed", str(engine), "--gpus", str(num_ranks)]))


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m vlm2vec.doctor",
        description="Checks this machine, the nodes of a hostfile and a folder of shards before a run. Prints one line "
        "per check (ok, warn, fail) with its remedy; exit code 1 if any check fails.",
        examples=(
            "python -m vlm2vec.doctor",
            "python -m vlm2vec.doctor --hostfile launch/hostfile.example --dataset_name demo/shards --deepspeed "
            "ds_configs/zero2.json --config launch/recipes/mini.yaml",
        ),
    )
    made.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="Also check the nodes of this file, see launch/hostfile.example."
    )
    made.add_argument("--dataset_name", type=Path, metavar="DIR", help="Also check this folder of shards.")
    made.add_argument(
        "--deepspeed",
        type=Path,
        metavar="FILE",
        help="Also check that the operators of this configuration compile.",
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Also check whether the loaders of this recipe have enough shared memory; needs --deepspeed.",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns 1 if a check failed."""
    options = parser().parse_args(argv)
    console = Console(soft_wrap=True)
    counts = dict.fromkeys(_COLORS, 0)
    for finding in findings(options):
        counts[finding.status] += 1
        line = Text(f"{finding.status:<5}", style=_COLORS[finding.status]).append(finding.what, style="default")
        console.print(line.append(f" -> {finding.remedy}" if finding.remedy else "", style="default"))
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
