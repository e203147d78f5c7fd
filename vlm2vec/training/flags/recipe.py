"""A recipe: a YAML file of flags, read so that it passes the same types and checks as the command line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm2vec.errors import InputError, OneLineErrors
from vlm2vec.installed.settings_files import recipe_file
from vlm2vec.training.flags.training import ALTERNATIVES
from vlm2vec.training.modes import MODES

_NOT_IN_A_RECIPE = ("help", "config", *MODES)


def recipe_flags(path: Path | None, parser: OneLineErrors, argv: Sequence[str]) -> list[str]:
    """A recipe as flags.

    Args:
        path: The file, or the name of a recipe that comes with the package; None: no flags.
        parser: What will parse them.
        argv: The command line, whose flags win.

    Raises:
        InputError: A file that cannot be read, an unknown key or a value of another type; the message names them.
    """
    if path is None:
        return []
    actions = {action.dest: action for action in parser._option_string_actions.values()}
    known = [f"--{name}" for name in actions if name not in _NOT_IN_A_RECIPE]
    given = given_names(parser, argv)
    replaced = {pair[1 - side] for pair in ALTERNATIVES for side in (0, 1) if pair[side] in given}
    flags: list[str] = []
    for name, value in _read(path).items():
        if f"--{name}" not in known:
            raise InputError(f"--config {path}: unknown key '{name}'{parser.advice(f'--{name}', known)}")
        if value is not None and name not in replaced:
            flags += [f"--{name}", *_words(f"--config {path}: {name}", value, actions[name])]
    return flags


def given_names(parser: OneLineErrors, words: Iterable[str]) -> set[str]:
    """The names of the flags that words of a command line give, however they are spelled (`--max-steps`)."""
    actions = parser._option_string_actions
    return {actions[flag].dest for flag in (word.partition("=")[0] for word in words) if flag in actions}


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = recipe_file(path).read_text(encoding="utf-8")
        recipe, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"--config {path}: expected lines of 'flag: value'")
    keys = [str(key.value) for key, _ in node.value] if node else []
    for name, count in Counter(keys).most_common(1):
        if count > 1:
            raise InputError(f"--config {path}: the key '{name}' is there twice")
    return recipe


def _words(place: str, value: Any, action: argparse.Action) -> list[str]:
    """A value as words of a command line.

    Raises:
        InputError: Not what the flag takes.
    """
    if isinstance(value, list) and action.nargs not in ("+", "*"):
        raise InputError(f"{place}: {value} is a list, the flag takes one value")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{place}: an empty list; leave the key out")
    for each in values:
        if isinstance(each, (list, dict)) or each is None:
            raise InputError(f"{place}: {each!r} is not a single value")
        try:
            if callable(action.type):
                action.type(str(each))
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kind = {int: "a whole number", float: "a number", str: "text"}.get(action.type, "true or false")  # type: ignore[call-overload]
            raise InputError(f"{place}: {each!r} is not {kind}") from None
    return [str(each) for each in values]
