"""Rows and tables as data, with differences between runs and the best value of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

NOT_SCORED = "-"
# Shown after a number whose difference from the baseline's may be due to chance.
UNCLEAR = " ~"
UNCLEAR_NOTE = (
    f"A number with{UNCLEAR} differs from that of {{baseline}} by less than the 95 % intervals of both allow to tell."
)
DIFFERENCE_NOTE = "Differences are in percentage points, against {baseline}."
APART_NOTE = f"A difference is {NOT_SCORED} where a run was not scored on the same rows as {{baseline}}."
Cell = str | float | None


@dataclass(frozen=True)
class Row:
    """One line: texts, then numbers, None = not scored. A mean stands out from the datasets above it.

    Attributes:
        cells: Texts and numbers.
        is_mean: Whether the numbers are means.
        unclear: Places of the numbers whose difference from the baseline's may be due to chance.
        apart: Places of the numbers that were not scored on the same rows as the baseline's.
        differences: Places of the numbers that are shown with their sign.
        best: Places of the numbers that are the best of their row.
    """

    cells: tuple[Cell, ...]
    is_mean: bool = False
    unclear: frozenset[int] = frozenset()
    apart: frozenset[int] = frozenset()
    differences: frozenset[int] = frozenset()
    best: frozenset[int] = frozenset()

    def texts(self) -> list[str]:
        """The cells as they are shown, numbers with one decimal."""
        return [self._text(place, cell) for place, cell in enumerate(self.cells)]

    def kinds(self) -> list[str]:
        """The style class of each cell on the page: "best", "up", "down", or ""."""
        return [self._kind(place, cell) for place, cell in enumerate(self.cells)]

    def part(self, places: Sequence[int]) -> Row:
        """The row with some of its cells."""

        def moved(marked: frozenset[int]) -> frozenset[int]:
            return frozenset(number for number, place in enumerate(places) if place in marked)

        return Row(
            tuple(self.cells[place] for place in places),
            self.is_mean,
            *(moved(marked) for marked in (self.unclear, self.apart, self.differences, self.best)),
        )

    def _text(self, place: int, cell: Cell) -> str:
        if isinstance(cell, str):
            return cell
        if cell is None:
            return NOT_SCORED
        number = f"{cell:+.1f}" if place in self.differences else f"{cell:.1f}"
        return (number[1:] if number in ("+0.0", "-0.0") else number) + (UNCLEAR if place in self.unclear else "")

    def _kind(self, place: int, cell: Cell) -> str:
        if place in self.best:
            return "best"
        if place not in self.differences or cell is None or isinstance(cell, str) or place in self.unclear:
            return ""
        return "up" if cell > 0 else "down" if cell < 0 else ""


@dataclass(frozen=True)
class ScoreTable:
    """A table: one heading for each cell of a row; a rule between sections."""

    title: str
    headings: tuple[str, ...]
    sections: tuple[tuple[Row, ...], ...]

    @property
    def text_columns(self) -> list[bool]:
        """Whether each column holds texts."""
        return [isinstance(cell, str) for cell in self.sections[0][0].cells]

    def means(self, title: str) -> ScoreTable:
        """The rows that are means, as one section, without columns that are empty there."""
        rows = [row for section in self.sections for row in section if row.is_mean]
        shown = [place for place in range(len(self.headings)) if any(row.cells[place] != "" for row in rows)]
        headings = tuple(self.headings[place] for place in shown)
        return ScoreTable(title, ("group", *headings[1:]), (tuple(row.part(shown) for row in rows),))


def compared(table: ScoreTable, labels: Sequence[str], baseline: int) -> ScoreTable:
    """A table of runs with a column for each other run's difference from the baseline, and the best of rows marked.

    Args:
        table: The table; its last columns are the runs.
        labels: The runs' labels; a single run is not compared with anything.
        baseline: Place of the run that the others are compared with.
    """
    if len(labels) < 2:
        return table
    others = [place for place in range(len(labels)) if place != baseline]
    headings = (
        ["difference"] if len(others) == 1 else [f"\N{GREEK CAPITAL LETTER DELTA} {labels[each]}" for each in others]
    )
    sections = tuple(tuple(_compared(row, len(labels), baseline, others) for row in rows) for rows in table.sections)
    return ScoreTable(table.title, (*table.headings, *headings), sections)


def _compared(row: Row, num_runs: int, baseline: int, others: Sequence[int]) -> Row:
    first, end = len(row.cells) - num_runs, len(row.cells)
    differences: list[float | None] = []
    unclear = set(row.unclear)
    for number, other in enumerate(others):
        place = first + other
        own, reference = row.cells[place], row.cells[first + baseline]
        known = isinstance(own, float) and isinstance(reference, float) and place not in row.apart
        differences.append(own - reference if known else None)  # type: ignore[operator]
        if place in row.unclear:
            unclear.add(end + number)
    return replace(
        row,
        cells=(*row.cells, *differences),
        unclear=frozenset(unclear),
        differences=frozenset(range(end, end + len(others))),
        best=_best(row, first),
    )


def _best(row: Row, first: int) -> frozenset[int]:
    """Places of the highest number; none if all are equal, or not of the same rows."""
    numbers = {place: cell for place, cell in enumerate(row.cells) if place >= first and isinstance(cell, float)}
    if row.apart or len(set(numbers.values())) < 2:
        return frozenset()
    highest = max(numbers.values())
    return frozenset(place for place, number in numbers.items() if number == highest)


def not_told_apart(scores: Sequence[tuple[float, Sequence[float]] | None], baseline: int = 0) -> list[int]:
    """Places of the scores whose difference from the baseline's has an interval that contains 0.

    The interval of a difference is computed from those of both scores ("MOVER", Zou and Donner 2008), as if they were
    of different queries. For the same queries it is too wide, so a difference that is reported is real.

    Args:
        scores: (score, [low, high]) of each run, None = not scored.
        baseline: Place of the score that the others are compared with.
    """
    reference = scores[baseline] if scores else None
    if reference is None:
        return []
    value, (low, high) = reference
    places = []
    for place, other in enumerate(scores):
        if place == baseline or other is None:
            continue
        own, (own_low, own_high) = other
        distances = (own - own_low, high - value) if own >= value else (own_high - own, value - low)
        half = math.hypot(*distances)
        if abs(own - value) <= half:
            places.append(place)
    return places
