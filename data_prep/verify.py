"""Checks converted shards: every file against the manifest, every byte of every tar against the index.

    python -m data_prep.verify SHARDS [--decode] [--num_workers N]

It prints one line per problem and ends with exit code 3; exit code 0 if everything is intact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.command_line import EXIT_INCOMPLETE, NUM_WORKERS_HELP, Parser, not_negative
from data_prep.processes import available_cores, run_tasks
from data_prep.shard_check import ShardCheck, broken_parts
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.progress import progress_bar
from vlm2vec.messages.words import counted
from vlm2vec.shards.manifest import Manifest, ShardRecord

# Number of problems printed per shard; one damaged place often causes many.
_SHOWN_PER_SHARD = 5


@dataclass(frozen=True)
class Verification:
    """What was checked, and the problems found."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]


def verify(root: Path, decode: bool = False, num_workers: int = 0) -> Verification:
    """Checks a converter's output folder.

    Args:
        root: The folder.
        decode: Whether to also decode every image.
        num_workers: Number of worker processes; 0 checks in this process.

    Raises:
        InputError: There is no readable manifest.
    """
    manifest = Manifest.read(root)
    problems: dict[tuple[str, int], list[str]] = {}
    checks = []
    for name, subset in manifest.subsets.items():
        problems[name, -1] = [f"manifest: {problem}" for problem in manifest.row_problems(name)]
        problems[name, -1] += _unlisted_tars(root / name, subset.shards)
        checks += [ShardCheck(root, name, number, record, decode) for number, record in enumerate(subset.shards)]
    total = sum(check.record.bytes for check in checks)
    with progress_bar(total, "verify", "B") as progress:
        for check, found in run_tasks(broken_parts, checks, num_workers):
            problems[check.subset, check.number] = found
            progress.update(check.record.bytes)
    order = list(manifest.subsets)
    keys = sorted(problems, key=lambda key: (order.index(key[0]), key[1]))
    lines = [line for key in keys for line in _first(problems[key])]
    return Verification(len(checks), sum(check.record.num_samples for check in checks), total, tuple(lines))


def _unlisted_tars(folder: Path, shards: Sequence[ShardRecord]) -> list[str]:
    """Problems: tars that the manifest does not list, which a program that reads all tars would read too."""
    known = {f"{shard.name}.tar" for shard in shards}
    return [f"{path}: not in the manifest" for path in sorted(folder.glob("*.tar")) if path.name not in known]


def _first(problems: Sequence[str]) -> list[str]:
    lines = list(problems[:_SHOWN_PER_SHARD])
    if len(problems) > len(lines):
        lines.append(f"  and {len(problems) - len(lines)} more in this shard")
    return lines


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.verify",
        description="Checks shards: manifest, checksums, index and every sample. Prints one line per problem. Exit "
        f"code {EXIT_INCOMPLETE} if there is any.",
        examples=("python -m data_prep.verify demo/shards --decode",),
    )
    made.add_argument("shards", type=Path, help="Folder of shards that data_prep.convert wrote.")
    made.add_argument("--decode", action="store_true", help="Also decode every image.")
    made.add_argument("--num_workers", type=not_negative, default=available_cores(), help=NUM_WORKERS_HELP)
    return made


def main() -> int:
    """Parses the command line, verifies, prints what is broken."""
    arguments = parser().parse_args()
    found = verify(arguments.shards, arguments.decode, arguments.num_workers)
    for line in found.problems:
        print(line)
    verdict = counted(len(found.problems), "problem") if found.problems else "whole"
    counts = f"{counted(found.shards, 'shard')}, {counted(found.samples, 'sample')}, {found.bytes / 1e6:.1f} MB"
    print(f"{arguments.shards}: {counts}: {verdict}")
    return EXIT_INCOMPLETE if found.problems else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
