"""What the training program does instead of training: its own flags, in a module without heavy imports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vlm2vec.errors import OneLineErrors

MODES = {
    "dry_run": "Print the run's plan and end; takes the flags of vlm2vec.plan too.",
    "print_config": "Print the configuration in force as YAML, with where each value comes from, and end.",
}


def add_modes(parser: argparse.ArgumentParser) -> None:
    """Declares the modes."""
    for name, text in MODES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)


def parse_modes(argv: Sequence[str]) -> tuple[set[str], list[str]]:
    """The modes that a command line asks for, and the rest of it, which is for the flags' own parser."""
    parser = OneLineErrors(prog="vlm2vec.train", add_help=False, allow_abbrev=False)
    add_modes(parser)
    modes, rest = parser.parse_known_args(argv)
    return {name for name in MODES if getattr(modes, name)}, rest
