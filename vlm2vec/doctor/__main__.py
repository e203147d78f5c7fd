"""Checks this machine, the nodes of a hostfile and a folder of shards before a run.

    python -m vlm2vec.doctor [--hostfile FILE] [--dataset_name SHARDS] [--deepspeed FILE]

Prints one line per check (ok, warn, fail) with its remedy. Exit code 1 if any check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlm2vec.doctor.data import data_findings
from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.doctor.machine import machine_findings
from vlm2vec.doctor.nodes import node_findings
from vlm2vec.errors import OneLineErrors, run_program

_COLORS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


class _Parser(OneLineErrors, argparse.ArgumentParser):
    pass


def findings(hostfile: Path | None, dataset: Path | None, engine: Path | None) -> Iterator[Finding]:
    """All checks, one after another."""
    yield from machine_findings(engine)
    if hostfile is not None:
        yield from node_findings(hostfile)
    if dataset is not None:
        yield from data_findings(dataset)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; 1 if something failed."""
    parser = _Parser(prog="vlm2vec.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hostfile", type=Path, help="nodes to reach, see launch/hostfile.example")
    parser.add_argument("--dataset_name", type=Path, help="folder of shards")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed settings of the run: can they be compiled")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    counts = dict.fromkeys(_COLORS, 0)
    for finding in findings(options.hostfile, options.dataset_name, options.deepspeed):
        counts[finding.status] += 1
        line = Text(f"{finding.status:<5}", style=_COLORS[finding.status]).append(finding.what, style="default")
        console.print(line.append(f" -> {finding.remedy}" if finding.remedy else "", style="default"))
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
