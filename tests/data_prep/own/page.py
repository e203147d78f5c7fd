"""Runs the commands of docs/own_data.md in a process that has imported everything."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from pathlib import Path


def main(folder: Path, commands: list[str]) -> None:
    """Runs `python FILE ...` and `python -m MODULE ...` one after the other in a folder, up to the first failure."""
    os.chdir(folder)
    for command in commands:
        python, *words = shlex.split(command)
        assert python == "python"
        is_module = words[0] == "-m"
        sys.argv = words = words[is_module:]
        print(f"$ {command}", flush=True)
        try:
            if is_module:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        sys.stdout.flush()
