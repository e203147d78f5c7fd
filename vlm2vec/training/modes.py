"""Flags of the training program that replace training; a module without heavy imports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vlm2vec.messages.command_line import Parser

MODES = {
    "dry_run": "Print the plan of the run and exit; also takes the flags of vlm2vec.plan.",
    "print_config": "Print the configuration in force as YAML, with the source of each value, and exit.",
}


def add_modes(parser: argparse.ArgumentParser) -> None:
    """Adds the modes' flags to a parser."""
    for name, text in MODES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)


def parse_modes(argv: Sequence[str]) -> tuple[set[str], list[str]]:
    """The modes that a command line asks for, and its remaining words for the parser of the other flags."""
    parser = Parser(prog="vlm2vec.train", add_help=False)
    add_modes(parser)
    modes, rest = parser.parse_known_args(argv)
    return {name for name in MODES if getattr(modes, name)}, rest
