"""What the first rank finds out and all ranks need: told to them, failures too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from vlm2vec.errors import EXIT_BAD_INPUT, InputError

Value = TypeVar("Value")


def from_first_rank(find: Callable[[], Value]) -> Value:
    """Calls `find` on the first rank and gives its value to all; all ranks call it.

    Raises:
        InputError: On the first rank, if `find` raised it.
        SystemExit: On the others then, without a word: the first one says it.
    """
    told: list[Any] = [None, False]
    error = None
    if dist.get_rank() == 0:
        try:
            told[0] = find()
        except InputError as raised:
            error, told[1] = raised, True
    dist.broadcast_object_list(told)
    if error is not None:
        raise error
    if told[1]:
        raise SystemExit(EXIT_BAD_INPUT)
    value: Value = told[0]
    return value
