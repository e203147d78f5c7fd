"""Formats counts for messages."""

from __future__ import annotations


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number with its noun: "1 dataset", "1,000 datasets".

    Args:
        number: The count.
        thing: The noun in the singular.
        things: The noun in the plural, if it is not `thing` with an s.
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
