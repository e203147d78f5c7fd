"""Errors of an evaluation name the thing that is wrong; the program that was told it names the flag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from vlm2vec.errors import InputError


class Thing(Enum):
    """What an evaluation is told."""

    DATASET = "dataset"
    SUBSET = "subset"
    IMAGES = "image folder"
    BENCHMARK = "benchmark"


class ThingError(InputError):
    """Something that an evaluation was told is wrong; the message begins with the value.

    Args:
        thing: What.
        message: What is wrong with it.
    """

    def __init__(self, thing: Thing, message: str) -> None:
        super().__init__(message)
        self.thing = thing


@contextmanager
def named_flags(flags: Mapping[Thing, str]) -> Iterator[None]:
    """Puts the program's flag before the message.

    Raises:
        InputError: In the place of a `ThingError`.
    """
    try:
        yield
    except ThingError as error:
        raise InputError(f"{flags[error.thing]} {error}") from error
