"""The one error that means "the input is wrong", and how programs report it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_BAD_INPUT = 2


class InputError(Exception):
    """Bad input from a user: a file, a row, an option.

    The message is one line, names the file (and the row, where there is one) and, where it helps, the remedy.
    Programs print it without a traceback and end with exit code 2.
    """


class OneLineErrors:
    """For an argument parser: reports a bad command line as all bad input, in one line without the usage block.

    A value that begins with `~` means a home folder also where no shell has expanded it: in a recipe, in `--flag=~/x`.
    """

    prog: str

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Called by argparse, whatever the way to parse."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_at_home(word) for word in words], namespace)  # type: ignore[misc]

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; {self.prog} --help lists the options")


def run_program(main: Callable[[], int | None]) -> int:
    """Runs a program's `main`; an `InputError` becomes one line on stderr and exit code 2.

    Characters that the output's encoding lacks, in a name for example, are printed as `\\xe9` and do not end the run.

    Returns:
        The exit code for `sys.exit`: 0, whatever `main` returned, or 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook, nor under some test runners
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT


def printable(text: str) -> str:
    """The text with halves of surrogate pairs, as names that are not UTF-8 hold them, spelled out: valid UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _at_home(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"
