"""The parser of all programs: help in one form, and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, get_type_hints

from vlm2vec.errors import InputError

# Columns of help, fewer on a narrow terminal.
HELP_WIDTH = 100
_FLAG_WIDTH = 30
# What stands for a value if a flag does not say it.
_METAVARS: Mapping[Any, str] = MappingProxyType({int: "N", float: "FLOAT", Path: "PATH"})
TRUE_OR_FALSE = "true|false"
# A space at which textwrap does not break a line.
_UNBROKEN = "\N{NO-BREAK SPACE}"


class HelpFormatter(argparse.HelpFormatter):
    """Help with one spelling per flag, the type of its value, and its default after its text."""

    def __init__(self, prog: str) -> None:
        width = min(HELP_WIDTH, max(shutil.get_terminal_size((HELP_WIDTH, 24)).columns, 60))
        super().__init__(prog, max_help_position=_FLAG_WIDTH, width=width)

    def _format_usage(self, usage: Any, actions: Iterable[argparse.Action], groups: Any, prefix: str | None) -> str:
        """Only what must be given; the flags that may be left out are listed below."""
        needed = [action for action in actions if action.required or not action.option_strings]
        needed.sort(key=lambda action: bool(action.option_strings))
        words = [self._prog, *(self._format_action_invocation(action) for action in needed), "[options]"]
        lines = ["usage:"]
        # A flag stays beside its value.
        for word in re.split(r" (?=--|\[)", usage) if usage else words:
            if len(lines[-1]) + 1 + len(word) > self._width:
                lines.append("   ")
            lines[-1] += f" {word}"
        return "\n".join(lines) + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name, value = spelling(action), self._format_args(action, self._default_of(action))
        return " ".join(part for part in (name, value if action.nargs != 0 else "") if part)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        metavar = action.metavar if action.metavar is not None else default_metavar
        if isinstance(metavar, tuple):
            return " ".join(metavar)
        formats = {argparse.ONE_OR_MORE: f"{metavar} ...", "*": f"[{metavar} ...]", argparse.OPTIONAL: f"[{metavar}]"}
        if isinstance(action.nargs, int):
            return " ".join([metavar] * action.nargs)
        return formats.get(action.nargs or "", metavar)

    def _default_of(self, action: argparse.Action) -> str:
        """The metavar of an action that has none."""
        if action.choices is not None:
            return "|".join(str(choice) for choice in action.choices)
        if not action.option_strings:
            return action.dest.upper()
        kind = action.type
        if kind is not None and not isinstance(kind, type):
            kind = get_type_hints(kind).get("return")
        return _METAVARS.get(kind, "TEXT")

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", default_text(action)
        if action.required and action.option_strings:
            return f"{text} (required)"
        return text if value is None else f"{text} (default:{_UNBROKEN}{value.replace('%', '%%')})"

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = textwrap.wrap(" ".join(text.split(" ")), width, break_on_hyphens=False)
        return [line.replace(_UNBROKEN, " ") for line in lines]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled, indented ones stay as they are."""
        parts = [part.rstrip() for part in textwrap.dedent(text).strip("\n").split("\n\n") if part.strip()]
        return "\n\n".join(part if part[0].isspace() else self._paragraph(part, width, indent) for part in parts)

    def _paragraph(self, text: str, width: int, indent: str) -> str:
        wrapped = textwrap.wrap(" ".join(text.split()), width - len(indent), break_on_hyphens=False)
        return "\n".join(f"{indent}{line}" for line in wrapped)


class Parser(argparse.ArgumentParser):
    """The parser of a program: help in one form, and a bad command line reported as all bad input, in one line.

    An unknown flag is named before anything else that is wrong, with the nearest one, or with the remedy for a flag
    that other programs have. A value that begins with `~` means a home folder also where no shell has expanded it: in
    a recipe, in `--flag=~/x`.

    Args:
        examples: Commands for the end of the help, each on one line; `tests/test_help.py` parses them.
        old_names: Flags of other programs, without dashes, and what to use here instead.
        keywords: Arguments of `argparse.ArgumentParser`. `prog` is how the program is started; its console script
            shows its own name instead.
    """

    # Modules and the console scripts that run them; set if this process is one of these scripts.
    commands: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(
        self, *, examples: Sequence[str] = (), old_names: Mapping[str, str] | None = None, **keywords: Any
    ) -> None:
        keywords.setdefault("formatter_class", HelpFormatter)
        keywords.setdefault("allow_abbrev", False)
        if examples:
            keywords["epilog"] = "\n\n".join(["Examples:", *(command_text(example) for example in examples)])
        super().__init__(**keywords)
        self.prog = self.commands.get(self.prog.removeprefix("python -m "), self.prog)
        self.examples = tuple(examples)
        self.old_names = dict(old_names or {})
        for action in self._actions:
            if action.dest == "help":
                action.help = "Show this help and exit."

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Expands `~` in all arguments; every way to parse calls this method."""
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
            words: The command line.
            also_known: Flags that another parser takes.

        Raises:
            InputError: The first unknown flag.
        """
        known = {*self._option_string_actions, *also_known}
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                raise InputError(f"unknown option {flag}{self.advice(flag, known)}")

    def advice(self, flag: str, known: Iterable[str]) -> str:
        """The remedy for an unknown flag, to follow its name."""
        name = flag.removeprefix("--").replace("-", "_")
        if f"--{name}" in known:
            return f"; did you mean --{name}?"
        if name in self.old_names:
            return f": {self.old_names[name]}"
        nearest = difflib.get_close_matches(f"--{name}", list(known), n=1, cutoff=0.7)
        return f"; did you mean {nearest[0]}?" if nearest else f"; {self.prog} --help lists the options"


def first_line(docstring: str | None) -> str:
    """The first line of a module's docstring, for `description=`."""
    return (docstring or "").partition("\n")[0]


def spelling(action: argparse.Action) -> str:
    """The one spelling of a flag that help shows: the first long one; "" for a positional argument."""
    long = [name for name in action.option_strings if name.startswith("--")]
    return next(iter(long or action.option_strings), "")


def default_text(action: argparse.Action) -> str | None:
    """A flag's default as help shows it; None if there is none to show: what happens then is in the flag's text."""
    value = action.default
    if value is None or value is argparse.SUPPRESS or value in ([], (), "") or action.nargs == 0:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def command_text(command: str) -> str:
    """A command as indented lines of at most `HELP_WIDTH` columns, broken before its flags."""
    lines = ["  "]
    words = shlex.split(command, posix=False)
    for number, word in enumerate(words):
        # A flag stays beside its values.
        unit = len(word) if not word.startswith("--") else len(" ".join(_with_values(words[number:])))
        if len(lines[-1]) > 4 and len(lines[-1]) + unit + 3 > HELP_WIDTH:
            lines[-1] += " \\"
            lines.append("    ")
        lines[-1] += word if lines[-1].isspace() else f" {word}"
    return "\n".join(lines)


def _with_values(words: Sequence[str]) -> list[str]:
    end = next((number for number, word in enumerate(words) if number and word.startswith("--")), len(words))
    return list(words[:end])


def flags_of(command: str, program: str) -> list[str]:
    """The words of a command behind the name of its program, as a shell splits them."""
    return shlex.split(command.partition(f"{program} ")[2])


def _at_home(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"
