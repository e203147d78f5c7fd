"""Runs the commands of README and docs/ that are marked as runnable, on a demo: `python -m trials.documents`.

They run one after another, in a reader's order, in a folder with links to the repository's and a copy of the demo's
files. `python -m trials.documents training export` runs those of two pages. Needs a demo (`make demo`).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from trials.rig.documents import prepare, run_block, runnable_blocks
from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser

_LINES_OF_A_FAILURE = 40


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.documents",
        description="Runs the commands of README and docs/ that are marked as runnable, on a demo.",
        examples=("python -m trials.documents", "python -m trials.documents training export"),
    )
    made.add_argument("pages", nargs="*", metavar="PAGE", help="Pages to run, by name. If not given: all of them.")
    made.add_argument("--demo", type=Path, default=Path("demo"), metavar="DIR", help="Folder that make demo wrote.")
    made.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="Folder to run in, empty or new. If not given: a temporary one.",
    )
    return made


def main() -> None:
    """Parses the command line, runs the blocks, prints a line for each, and the output of those that fail."""
    blocks = runnable_blocks()
    names = {Path(block.page).stem for block in blocks}
    arguments = parser().parse_args()
    if unknown := set(arguments.pages) - names:
        raise InputError(f"no runnable commands in {', '.join(sorted(unknown))}; pages: {', '.join(sorted(names))}")
    if not (arguments.demo / "trained").is_dir():
        raise InputError(f"--demo {arguments.demo}: no demo there; make one with: make demo")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(arguments.demo, folder / "demo")
        variables = prepare(folder, Path(sys.executable))
        failed = total = 0
        for block in blocks:
            if arguments.pages and Path(block.page).stem not in arguments.pages:
                continue
            outcome = run_block(block, folder, variables, HANG_SECONDS)
            total += 1
            failed += outcome.exit_code != 0
            verdict = f"exit code {outcome.exit_code}" if outcome.exit_code else "ok"
            print(f"{block}: {verdict}, {outcome.seconds:.0f} s", flush=True)
            if outcome.exit_code:
                print(*outcome.output.splitlines()[-_LINES_OF_A_FAILURE:], sep="\n", flush=True)
    print(f"{total} blocks, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    sys.exit(run_program(main))
