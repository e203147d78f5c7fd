"""`InputError`, the one error for bad input, and how programs report it and end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a process that ended by SIGINT


class InputError(Exception):
    """Bad input from a user: a file, a row or an option.

    The message is one line that names the file (and the row, if any) and the remedy, if there is one. Programs print it
    without a traceback and end with exit code 2.

    Attributes:
        is_reported: Whether this process or a different rank has already printed it.
    """

    is_reported = False


def run_program(main: Callable[[], int | None]) -> int:
    r"""Runs a program's `main`; reports an `InputError`, an unusable path or Ctrl-C as one line on stderr.

    Characters that the output's encoding lacks are printed as escapes such as `\xe9` and do not end the program.
    Each line is written at once, also to a file or a pipe.

    Returns:
        The exit code for `sys.exit`: 0, whatever `main` returned, 2 for bad input, or 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is not in a notebook and under some test runners
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        return main() or 0
    except (InputError, KeyboardInterrupt) as error:
        return report(error)
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError) as error:
        if error.filename is None:
            raise  # the error is not about a path
        return report(InputError(f"{os.fsdecode(error.filename)}: cannot be written or read ({error.strerror})"))


def report(error: InputError | KeyboardInterrupt) -> int:
    """Prints one line on stderr.

    Returns:
        The matching exit code.
    """
    if isinstance(error, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    if not error.is_reported:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def printable(text: str) -> str:
    """Makes a text valid UTF-8: lone surrogates, which file names that are not UTF-8 contain, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
