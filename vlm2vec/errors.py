"""The one error that means "the input is wrong", and how programs report it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT = 2


class InputError(Exception):
    """Bad input from a user: a file, a row, an option.

    The message is one line, names the file (and the row, where there is one) and, where it helps, the remedy.
    Programs print it without a traceback and end with exit code 2.
    """


class OneLineErrors:
    """For an argument parser: a bad command line is reported as all bad input, one line, without the usage block."""

    prog: str

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; {self.prog} --help lists the options")


def run_program(main: Callable[[], int | None]) -> int:
    """Runs a program's `main`; an `InputError` becomes one line on stderr and exit code 2.

    Returns:
        The exit code for `sys.exit`: 0, whatever `main` returned, or 2.
    """
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
