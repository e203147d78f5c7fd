"""Errors about an evaluation's inputs: library code names the thing, a program adds its flag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from vlm2vec.errors import InputError


class Thing(Enum):
    """Inputs of an evaluation."""

    DATASET = "dataset"
    SUBSET = "subset"
    IMAGES = "image folder"
    BENCHMARK = "benchmark"


class ThingError(InputError):
    """An input of an evaluation is wrong; the message starts with its value.

    Args:
        thing: The input.
        message: Its value and what is wrong with it.
    """

    def __init__(self, thing: Thing, message: str) -> None:
        super().__init__(message)
        self.thing = thing


@contextmanager
def named_flags(flags: Mapping[Thing, str]) -> Iterator[None]:
    """Context that puts the program's flag before the message of a `ThingError`.

    Raises:
        InputError: In place of a `ThingError`.
    """
    try:
        yield
    except ThingError as error:
        raise InputError(f"{flags[error.thing]} {error}") from error
