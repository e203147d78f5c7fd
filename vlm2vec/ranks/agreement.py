"""Agreements of all ranks on values and on errors: either all ranks continue, or all end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from vlm2vec.errors import EXIT_BAD_INPUT, InputError
from vlm2vec.ranks.group import own_rank
from vlm2vec.ranks.messages import gather_from_all, send_from_first

Value = TypeVar("Value")


def on_first_rank(work: Callable[[], Value], kind: Any = Any) -> Value:
    """Calls `work` on the first rank and returns its value on all ranks; all ranks call it.

    Args:
        work: Returns the value.
        kind: Type of the value, unless it consists of JSON's types (see `vlm2vec.ranks.messages`).

    Raises:
        InputError: On the first rank, if `work` raised it.
        SystemExit: On the other ranks then, with exit code 2 and no message: the first rank reports it.
    """
    found: list[Value] = []
    error = None
    if own_rank() == 0:
        try:
            found = [work()]
        except InputError as raised:
            error = raised
    found = send_from_first(found, list[kind])
    if error is not None:
        raise error
    if not found:
        raise SystemExit(EXIT_BAD_INPUT)
    return found[0]


def on_every_rank(work: Callable[[], Value], names_ranks: bool = True) -> Value:
    """Calls `work` on every rank, whose values may differ; all ranks call it.

    Args:
        work: Returns this rank's value.
        names_ranks: See `refuse_together`.

    Raises:
        InputError: On the first rank, if `work` raised it on any rank.
        SystemExit: On the other ranks then, with exit code 2 and no message.
    """
    value, error = None, None
    try:
        value = work()
    except InputError as raised:
        error = raised
    refuse_together(None if error is None else str(error), names_ranks, cause=error)
    return value  # type: ignore[return-value]  # None only where `work` returned it


def refuse_together(problem: str | None, names_ranks: bool = True, cause: InputError | None = None) -> None:
    """Ends all ranks if one of them has a problem; all ranks call it.

    Args:
        problem: This rank's problem, None if it has none.
        names_ranks: Whether the message lists the problems with their ranks (see `told`). False if it does not matter
            which rank met a problem: the message is then the first problem alone.
        cause: Error behind this rank's problem.

    Raises:
        InputError: On the first rank.
        SystemExit: On the other ranks, with exit code 2 and no message.
    """
    problems = gather_from_all(problem, str | None)
    text = told(problems) if names_ranks else next((each for each in problems if each is not None), None)
    if text is not None:
        refuse_alike(text, cause)


def refuse_alike(problem: str, cause: InputError | None = None) -> NoReturn:
    """Ends all ranks because of a problem that all of them know; not a collective.

    Raises:
        InputError: On the first rank.
        SystemExit: On the others, with exit code 2 and no message.
    """
    if own_rank() == 0:
        raise InputError(problem) from cause
    raise SystemExit(EXIT_BAD_INPUT)


def told(problems: Sequence[str | None], most: int = 3) -> str | None:
    """The ranks' problems in one line, each with the ranks that have it, unless all have the same one."""
    ranks: dict[str, list[int]] = {}
    for rank, problem in enumerate(problems):
        if problem is not None:
            ranks.setdefault(problem, []).append(rank)
    if not ranks:
        return None
    [(first, holders), *_] = ranks.items()
    if len(holders) == len(problems):
        return first
    texts = [f"{listed_ranks(each)}: {problem}" for problem, each in ranks.items()]
    rest = [f"and {len(texts) - most} more problems"] if len(texts) > most else []
    return "; ".join(texts[:most] + rest)


def listed_ranks(ranks: Sequence[int]) -> str:
    """Some ranks in words: "rank 2", "ranks 1, 3"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
