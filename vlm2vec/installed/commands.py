"""Console scripts: `vlm2vec-train` runs exactly what `python -m vlm2vec.train` runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from vlm2vec.messages.command_line import Parser

# Every script and the module that it runs. setup.py reads this table from the text, so it holds plain strings only.
COMMANDS = {
    "vlm2vec-average": "vlm2vec.average",
    "vlm2vec-convert": "data_prep.convert",
    "vlm2vec-doctor": "vlm2vec.doctor",
    "vlm2vec-download": "data_prep.download",
    "vlm2vec-eval": "eval.mmeb",
    "vlm2vec-export": "vlm2vec.export",
    "vlm2vec-inspect": "data_prep.inspect",
    "vlm2vec-leaderboard": "eval.leaderboard",
    "vlm2vec-mine": "data_prep.mine",
    "vlm2vec-plan": "vlm2vec.plan",
    "vlm2vec-report": "eval.report",
    "vlm2vec-retrieval": "eval.retrieval",
    "vlm2vec-train": "vlm2vec.train",
    "vlm2vec-verify": "data_prep.verify",
}


def run() -> None:
    """Runs the program whose script this process was started as; usage lines and errors show the script's name.

    The module runs as `__main__`, as under `python -m`: worker processes that start a new interpreter find it by name,
    and vlm2vec.train reports the slow imports before they begin.
    """
    command = Path(sys.argv[0]).name.removesuffix(".exe")
    Parser.commands = {module: script for script, module in COMMANDS.items()}
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)
