"""The commands of README and docs/ that are marked as runnable, and how one of them is run.

A mark is an HTML comment before a fenced block, which neither GitHub nor the site shows: `<!-- runnable -->`, or
`<!-- runnable: slow -->` for what takes too long for a test. `<!-- file: draw.py -->` names a script whose content the
block gives.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trials.rig.launcher import REPOSITORY, environment, free_port

README, DOCS = REPOSITORY / "README.md", REPOSITORY / "docs"
# What commands name besides the demo's files.
_FOLDERS = ("ds_configs", "examples", "launch")
# By language: what runs a block, and the file that it is written to.
_PROGRAMS = {"bash": (("bash", "-euo", "pipefail"), "block.sh"), "python": (("python",), "block.py")}
_BLOCK = r"\s*\n```(\w+)\n(.*?)^```$"
_RUNNABLE = re.compile(rf"<!-- runnable(: slow)? -->{_BLOCK}", re.MULTILINE | re.DOTALL)
_FILE = re.compile(rf"<!-- file: ([\w.]+) -->{_BLOCK}", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block that is marked as runnable.

    Attributes:
        page: The document's path from the repository's root.
        line: Of the block's first command, from 1.
        language: "bash" or "python".
        text: The commands.
        is_slow: Whether tests leave it to `python -m trials.documents`.
    """

    page: str
    line: int
    language: str
    text: str
    is_slow: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Outcome:
    """How a block ended: its exit code, stdout and stderr together, and the seconds that it took."""

    exit_code: int
    output: str
    seconds: float


def listed_pages() -> list[Path]:
    """The pages of docs/, in the order in which docs/README.md lists them."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    return [DOCS / name for name in re.findall(r"^\| \[[^\]]+\]\(([\w./]+)\)", text, re.MULTILINE)]


def pages() -> list[Path]:
    """README and all pages of docs/, in a reader's order."""
    return [README, DOCS / "README.md", *listed_pages()]


def runnable_blocks() -> list[Block]:
    """All of them, in a reader's order."""
    found = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for match in _RUNNABLE.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            page = path.relative_to(REPOSITORY).as_posix()
            found.append(Block(page, line, match[2], match[3], is_slow=match[1] is not None))
    return found


def prepare(folder: Path, python: Path) -> dict[str, str]:
    """Makes a folder in which blocks run as in the repository's root, once its `demo` is there.

    The folder gets links to what commands name, the scripts whose content pages give, a cache of its own, and a
    `deepspeed` that starts ranks at a free port.

    Args:
        folder: Empty, or with a `demo`.
        python: What `python` means to the blocks.

    Returns:
        The blocks' environment variables.
    """
    for name in _FOLDERS:
        (folder / name).symlink_to(REPOSITORY / name)
    for path in pages():
        for name, _, content in _FILE.findall(path.read_text(encoding="utf-8")):
            (folder / name).write_text(content, encoding="utf-8")
    programs = folder / "bin"
    programs.mkdir()
    deepspeed = programs / "deepspeed"
    deepspeed.write_text(f'#!/bin/sh\nexec "{python}" -m deepspeed.launcher.runner --master_port {free_port()} "$@"\n')
    deepspeed.chmod(0o755)
    variables = environment(python)
    search_path = f"{programs}{os.pathsep}{variables['PATH']}"
    return {**variables, "PATH": search_path, "XDG_CACHE_HOME": str(folder / "cache")}


def run_block(block: Block, folder: Path, variables: dict[str, str], timeout: float) -> Outcome:
    """Runs a block in a folder that `prepare` made, up to its first failing command.

    Args:
        block: To run.
        folder: The working directory.
        variables: What `prepare` returned.
        timeout: Seconds, after which the block is killed; so is what it has left in the background when it ends.
    """
    # A file: on the command line, `pkill -f` would find the words of the block itself.
    program, name = _PROGRAMS[block.language]
    (folder / name).write_text(block.text, encoding="utf-8")
    start = time.monotonic()
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, name], cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left in the background
    seconds = time.monotonic() - start
    return Outcome(process.returncode, log.read_text(errors="replace"), seconds)
