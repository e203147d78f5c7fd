"""Runs benchmark programs and writes what they print into docs/benchmarks.md.

    make bench                          all suites except the long ones
    make bench SUITES="step memory"     some suites; the other sections of the document do not change

Every program prints its numbers in Markdown, beside a baseline from the same run. A section contains the command, the
date, the machine and that output, nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.suites import SUITES, Suite
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

DOCUMENT = Path("docs/benchmarks.md")
HEADER = """# Benchmarks

Written by `make bench`; do not edit. All numbers were printed by a command in this repository, each with a baseline
from the same run. Times on a shared machine are noisy; only ratios within a run are meaningful.
"""
_PACKAGES = ("torch", "deepspeed", "transformers")
_LOG_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d [^]]*\] \[[A-Z]+\] .*\n", re.MULTILINE)
_SECTION = re.compile(r"<!-- suite: (\w+) -->\n(.*?)(?=<!-- suite: |\Z)", re.DOTALL)


def machine() -> str:
    """One line with date, machine and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {packages}"
    )


def run(suite: Suite) -> str:
    """Runs a suite's program; returns its section's text.

    Raises:
        SystemExit: The program failed, or exceeded its time limit.
    """
    command = f"python -m {suite.command}"
    print(f"== {suite.title}: {command}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(suite.command)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=suite.limit_seconds,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"{command}: {error}") from error
    seconds = time.monotonic() - start
    print(done.stdout, flush=True)
    return f"`{command}` ({machine()}; {seconds:.0f} s)\n\n{suite.text}\n\n{without_log_lines(done.stdout)}\n"


def without_log_lines(output: str) -> str:
    """A program's output without DeepSpeed's log, which is written to standard output too."""
    return _LOG_LINE.sub("", output).strip()


def sections(document: str) -> dict[str, str]:
    """The document's sections by suite."""
    return {name: body.partition("\n\n")[2].strip() + "\n" for name, body in _SECTION.findall(document)}


def written() -> dict[str, str]:
    """The document's current sections."""
    return sections(DOCUMENT.read_text(encoding="utf-8")) if DOCUMENT.exists() else {}


def compose(found: dict[str, str]) -> str:
    """The document with the existing sections, in the suites' order."""
    parts = [
        f"<!-- suite: {name} -->\n## {suite.title}\n\n{found[name].strip()}\n"
        for name, suite in SUITES.items()
        if name in found
    ]
    return "\n".join([HEADER, *parts])


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks",
        description=first_line(__doc__),
        examples=("python -m benchmarks step memory",),
    )
    made.add_argument(
        "suites",
        nargs="*",
        type=_suite,
        metavar="SUITE",
        help=f"Suites to run, of {', '.join(SUITES)}. If not given: all but the long ones.",
    )
    return made


def _suite(name: str) -> str:
    if name not in SUITES:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(SUITES)})")
    return name


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the suites and writes the document after each of them."""
    options = parser().parse_args(argv)
    names = options.suites or [name for name, suite in SUITES.items() if not suite.is_long]
    start = time.monotonic()
    for name in names:
        if SUITES[name].needs_gpu and name in written() and not torch.cuda.is_available():
            print(f"== {SUITES[name].title}: no GPU here, so its section is kept", flush=True)
            continue
        section = run(SUITES[name])
        found = written()  # read only now, because a different run may have written in the meantime
        DOCUMENT.write_text(compose({**found, name: section}), encoding="utf-8")
    print(f"{len(names)} suites in {(time.monotonic() - start) / 60:.0f} minutes; {DOCUMENT}")


if __name__ == "__main__":
    sys.exit(run_program(main))
