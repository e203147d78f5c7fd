"""Assigns the columns of the user's tables to the fields of a pair."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vlm2vec.errors import InputError

# The fields of a pair, and MMEB's names for them. A table may use either, or any other names that --columns assigns.
MMEB_NAMES = {
    "query": "qry",
    "query_image": "qry_image_path",
    "positive": "pos_text",
    "positive_image": "pos_image_path",
    "negative": "neg_text",
    "negative_image": "neg_image_path",
}
FIELDS = tuple(MMEB_NAMES)
IMAGE_FIELDS = tuple(name for name in FIELDS if name.endswith("_image"))
COLUMNS_EXAMPLE = "--columns query=QUESTION query_image=PHOTO positive=ANSWER"

_SHOWN_COLUMNS = 12


class ColumnsAction(argparse.Action):
    """Reads `--columns query=caption positive_image=photo` into a dictionary."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Called by argparse."""
        setattr(namespace, self.dest, parse_columns(values))


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """Parses fields and their columns; returns them in the fields' order.

    Raises:
        InputError: A word is not `field=column`, a field does not exist, a field or column is given twice, or query or
            target is missing.
    """
    columns: dict[str, str] = {}
    for word in words:
        field, equals, column = word.partition("=")
        if not (equals and column):
            raise InputError(f"--columns {word}: write field=column, as in {COLUMNS_EXAMPLE}")
        if field not in FIELDS:
            raise InputError(f"--columns {word}: {field!r} is none of {', '.join(FIELDS)}")
        if field in columns:
            raise InputError(f"--columns {word}: {field} is given twice ({columns[field]} before)")
        if column in columns.values():
            raise InputError(f"--columns {word}: column {column} is given twice")
        columns[field] = column
    if missing := _missing_side(columns):
        raise InputError(f"--columns {' '.join(words)}: nothing for the {missing}; add {missing}= or {missing}_image=")
    return {field: columns[field] for field in FIELDS if field in columns}


def choose_columns(path: str, available: Sequence[str], asked: Mapping[str, str] | None) -> dict[str, str]:
    """Chooses the columns to read: those that the user gave, or by their names.

    Args:
        path: The table's name in messages.
        available: Its columns.
        asked: The value of `--columns`; None: not given.

    Returns:
        The column of each field that the table has, in the fields' order.

    Raises:
        InputError: A column is missing or not unique, two match one field, or none matches query or target.
    """
    chosen: dict[str, str] = {}
    for field in FIELDS:
        names = [field, MMEB_NAMES[field]] if asked is None else [asked[field]] if field in asked else []
        found = [name for name in names if name in available]
        if asked is not None and names and not found:
            raise InputError(f"{path}: no column {names[0]}; it has {shown(available)}")
        if len(found) > 1:
            raise InputError(
                f"{path}: columns {found[0]} and {found[1]} are both the {field}; choose one with --columns"
            )
        if found:
            chosen[field] = found[0]
            if (count := list(available).count(found[0])) > 1:
                raise InputError(f"{path}: column {found[0]} occurs {count} times; keep one of them")
    if missing := _missing_side(chosen):
        raise InputError(
            f"{path}: no column for the {missing}; it has {shown(available)}; name the columns: {COLUMNS_EXAMPLE}"
        )
    return chosen


def shown(columns: Sequence[str]) -> str:
    """Names of columns for a message."""
    more = f" and {len(columns) - _SHOWN_COLUMNS} more" if len(columns) > _SHOWN_COLUMNS else ""
    return ", ".join(columns[:_SHOWN_COLUMNS]) + more or "none"


def _missing_side(columns: Mapping[str, str]) -> str | None:
    """The side (query or target) that has no column; None if both have one."""
    sides = ("query", "positive")
    return next((side for side in sides if side not in columns and f"{side}_image" not in columns), None)
