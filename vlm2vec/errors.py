"""The one error that means "the input is wrong", and how programs report it."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

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


class OneLineErrors(argparse.ArgumentParser):
    """An argument parser: a bad command line is reported as all bad input, one line, without the usage block.

    An unknown flag is named before anything else that is wrong, with the nearest one, or with what to say here instead
    of a flag that other programs have. A value that begins with `~` means a home folder also where no shell has
    expanded it: in a recipe, in `--flag=~/x`.

    Args:
        args: As argparse's.
        old_names: Flags of other programs, without dashes, and what to say here.
        kwargs: As argparse's; `prog` is the program's module, in whose place its console script shows its own name.
    """

    old_names: Mapping[str, str] = MappingProxyType({})
    # Modules and the console scripts that run them; set where this process is one of these scripts.
    commands: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, *args: Any, old_names: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prog = self.commands.get(self.prog.removeprefix("python -m "), self.prog)
        if old_names is not None:
            self.old_names = old_names

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Called by argparse, whatever the way to parse."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_at_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; {self.prog} --help lists the options")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, after `refuse_unknown`."""
        words = sys.argv[1:] if args is None else args
        self.refuse_unknown(words)
        return super().parse_args(words, namespace)

    def refuse_unknown(self, words: Sequence[str], also_known: Iterable[str] = ()) -> None:
        """Refuses flags that the parser does not have.

        Args:
            words: Of the command line.
            also_known: Flags that somebody else takes.

        Raises:
            InputError: The first unknown flag.
        """
        known = {*self._option_string_actions, *also_known}
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                raise InputError(f"unknown option {flag}{self.advice(flag, known)}")

    def advice(self, flag: str, known: Iterable[str]) -> str:
        """What to say of a flag that is not known, to follow its name."""
        name = flag.removeprefix("--").replace("-", "_")
        if f"--{name}" in known:
            return f"; did you mean --{name}?"
        if name in self.old_names:
            return f": {self.old_names[name]}"
        nearest = difflib.get_close_matches(f"--{name}", list(known), n=1, cutoff=0.7)
        return f"; did you mean {nearest[0]}?" if nearest else f"; {self.prog} --help lists the options"


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


def _at_home(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"
