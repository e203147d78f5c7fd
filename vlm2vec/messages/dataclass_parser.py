"""Argument parser whose flags are the fields of dataclasses."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from typing import Any

from transformers import HfArgumentParser

from vlm2vec.messages.command_line import TRUE_OR_FALSE, Parser


class DataclassParser(Parser, HfArgumentParser):
    """transformers' parser, with the help and the errors of all programs.

    Help lists flags under the class that declares them: of its docstring "Title: what these flags are for.", the title
    and the line below it. A class without such a docstring adds its flags to the section of the class before it.

    Args:
        groups: The dataclasses. A field's metadata may hold `help` and `metavar`.
        order: Titles of the sections in the order of the help; those that are not named come last.
        keywords: As of `Parser`.
    """

    def __init__(self, groups: Iterable[type[Any]], order: Iterable[str] = (), **keywords: Any) -> None:
        groups = tuple(groups)
        self._sections = sections_of(groups)
        self._helped: dict[str, Any] = {}
        super().__init__(dataclass_types=groups, **keywords)
        places = {title: place for place, title in enumerate(order)}
        # Stable: argparse's own sections (--help and what a program adds) stay first.
        own = len(self._action_groups) - len(self._helped)
        self._action_groups[own:] = sorted(
            self._action_groups[own:], key=lambda group: places.get(str(group.title), len(places))
        )

    def add_argument(self, *names: Any, policy: object = None, **keywords: Any) -> argparse.Action:
        """As argparse's; takes a field's metadata as transformers passes it on, which may hold a policy."""
        if getattr(keywords.get("type"), "__name__", "") == "string_to_bool":
            keywords.setdefault("metavar", TRUE_OR_FALSE)
        if keywords.get("action") == "store_false":
            # `--no_x` beside `--x false`: a second spelling.
            keywords["help"] = argparse.SUPPRESS
            keywords.pop("metavar", None)
        section = self._sections.get(keywords.get("dest") or names[0].removeprefix("--")) if names else None
        if section is None:
            return super().add_argument(*names, **keywords)
        title, description = section
        if title not in self._helped:
            self._helped[title] = self.add_argument_group(title, description)
        action: argparse.Action = self._helped[title].add_argument(*names, **keywords)
        return action


def sections_of(groups: Iterable[type[Any]]) -> dict[str, tuple[str, str]]:
    """Title and description of the section of each field of dataclasses, by the field's name."""
    sections: dict[str, tuple[str, str]] = {}
    for group in groups:
        section: tuple[str, str] | None = None
        # The order of a dataclass's fields.
        for base in reversed(group.__mro__):
            title, colon, description = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition(": ")
            # A dataclass without a docstring has its signature as one: "Name(field: int)".
            if colon and "\n" not in title and "(" not in title and inspect.get_annotations(base):
                text = " ".join(description.split("\n\n")[0].split())
                section = (title, f"{text[:1].upper()}{text[1:]}")
            if section is not None:
                sections |= dict.fromkeys(inspect.get_annotations(base), section)
    return sections
