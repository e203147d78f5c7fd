"""What one rank finds out and all ranks need: told to them, failures too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def on_every_rank(find: Callable[[], Value]) -> Value:
    """Calls `find` on every rank, whose values may differ; all ranks call it.

    Raises:
        InputError: On the first rank, if `find` raised it on any; the message names the ranks.
        SystemExit: On the others then, without a word.
    """
    value, problem = None, None
    try:
        value = find()
    except InputError as raised:
        problem = str(raised)
    refuse_together(problem)
    return value  # type: ignore[return-value]  # None only where `find` returned it


def refuse_together(problem: str | None) -> None:
    """Ends all ranks if one of them has a problem; all ranks call it.

    Raises:
        InputError: On the first rank.
        SystemExit: On the others.
    """
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    text = told(problems)
    if text is None:
        return
    if dist.get_rank() == 0:
        raise InputError(text)
    raise SystemExit(EXIT_BAD_INPUT)


def told(problems: Sequence[str | None], most: int = 3) -> str | None:
    """The ranks' problems in one line: each with the ranks that have it, unless all have the same one."""
    ranks: dict[str, list[int]] = {}
    for rank, problem in enumerate(problems):
        if problem is not None:
            ranks.setdefault(problem, []).append(rank)
    if not ranks:
        return None
    [(first, holders), *_] = ranks.items()
    if len(holders) == len(problems):
        return first
    texts = [f"rank(s) {', '.join(map(str, each))}: {problem}" for problem, each in ranks.items()]
    rest = [f"and {len(texts) - most} more problems"] if len(texts) > most else []
    return "; ".join(texts[:most] + rest)
