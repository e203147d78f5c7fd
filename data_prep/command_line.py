"""Parser, types and texts that the command lines of data_prep share."""

from __future__ import annotations

import argparse
from functools import partial

from vlm2vec.backbones.image_limits import OLD_NAMES_OF_CONVERSION
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.old_names import CONVERSION

# Exit code of a program that found incomplete or damaged data and reported it; bad input is 2.
EXIT_INCOMPLETE = 3
ALLOW_LINKS_HELP = "Follow symbolic links that lead out of the image folder, for images on a different disk."
NUM_WORKERS_HELP = "Number of worker processes. The default is the number of available cores."

# With remedies for flags that people know from other programs.
Parser = partial(AnyParser, old_names={**CONVERSION, **OLD_NAMES_OF_CONVERSION})


def positive(text: str) -> int:
    """An integer of at least 1, for `type=`."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An integer of at least 0, for `type=`."""
    return _at_least(0, text)


def share(text: str) -> float:
    """A number from 0 to 1, for `type=`."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to 1")
    return value


def _at_least(minimum: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from error
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be at least {minimum}")
    return value
