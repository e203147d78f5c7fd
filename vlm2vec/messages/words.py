"""How messages put numbers."""

from __future__ import annotations


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number with what it counts: "1 dataset", "1,000 datasets".

    Args:
        number: How many.
        thing: One of them.
        things: More of them, where that is not `thing` with an s.
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
