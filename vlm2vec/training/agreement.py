"""What one rank finds out and all ranks need: told to them, failures too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from vlm2vec.errors import EXIT_BAD_INPUT, InputError
from vlm2vec.rank_messages import gather_from_all, send_from_first

Value = TypeVar("Value")


def from_first_rank(find: Callable[[], Value], kind: Any = Any) -> Value:
    """Calls `find` on the first rank and gives its value to all; all ranks call it.

    Args:
        find: Finds the value.
        kind: Its type, unless it is made of JSON's own types (see `vlm2vec.rank_messages`).

    Raises:
        InputError: On the first rank, if `find` raised it.
        SystemExit: On the others then, without a word: the first one says it.
    """
    found: list[Value] = []
    error = None
    if dist.get_rank() == 0:
        try:
            found = [find()]
        except InputError as raised:
            error = raised
    found = send_from_first(found, list[kind])
    if error is not None:
        raise error
    if not found:
        raise SystemExit(EXIT_BAD_INPUT)
    return found[0]


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
    text = told(gather_from_all(problem, str | None))
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
