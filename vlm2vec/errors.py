"""The one error that means "the input is wrong", and how programs report it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a process that ended by SIGINT


class InputError(Exception):
    """Bad input from a user: a file, a row, an option.

    The message is one line, names the file (and the row, where there is one) and, where it helps, the remedy.
    Programs print it without a traceback and end with exit code 2.

    Attributes:
        is_reported: Whether it has been printed already, by this process or by another rank.
    """

    is_reported = False


def run_program(main: Callable[[], int | None]) -> int:
    """Runs a program's `main`; an `InputError`, a path that cannot be used and Ctrl-C become one line on stderr.

    Characters that the output's encoding lacks, in a name for example, are printed as `\\xe9` and do not end the run.

    Returns:
        The exit code for `sys.exit`: 0, whatever `main` returned, 2 for bad input, or 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook, nor under some test runners
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except (InputError, KeyboardInterrupt) as error:
        return report(error)
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError) as error:
        if error.filename is None:
            raise  # not about a path
        return report(InputError(f"{os.fsdecode(error.filename)}: cannot be written or read ({error.strerror})"))


def report(error: InputError | KeyboardInterrupt) -> int:
    """Prints one line on stderr.

    Returns:
        The exit code that goes with it.
    """
    if isinstance(error, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    if not error.is_reported:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def printable(text: str) -> str:
    """The text with halves of surrogate pairs, as names that are not UTF-8 hold them, spelled out: valid UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
