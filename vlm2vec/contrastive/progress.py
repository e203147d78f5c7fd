"""Where a step is, for whoever watches that it goes on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by the thread that runs a step, with the same places in the same order on every rank."""

    def __call__(self, place: str, is_pause: bool = False) -> None:
        """The step has come to a place; `is_pause` where it waits for something that may take long, such as data."""


def unwatched(place: str, is_pause: bool = False) -> None:
    """For a step that nobody watches."""
