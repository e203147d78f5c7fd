"""Prints tables on a terminal or in a log: splits wide tables into blocks of columns and never cuts a cell."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Column, Table

# Characters per line if the output is no terminal and COLUMNS is not set, so that tables in logs stay whole.
LOG_WIDTH = 140
# Widest heading or text in a column, in characters; longer ones are folded. Numbers are shorter.
_WIDEST_TEXT = 40
_UNBOUNDED = 100_000


def open_console() -> Console:
    """Console for a program's tables, as wide as the terminal or as COLUMNS."""
    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = LOG_WIDTH
    return console


def column(heading: str, justify: JustifyMethod = "right") -> Column:
    """A table column whose cells are never cut; long headings and texts are folded."""
    return Column(heading, justify=justify, overflow="fold", max_width=_WIDEST_TEXT)


def print_table(console: Console, table: Table) -> None:
    """Prints a table whole if it fits, otherwise in blocks of the first column and as many others as fit."""
    width = console.width
    for block in _blocks(console, table):
        console.width = max(width, _width(console, block))  # a single column may be wider than the terminal
        console.print(block)
    console.width = width


def _blocks(console: Console, table: Table) -> Iterable[Table]:
    if _width(console, table) <= console.width:
        return [table]
    first, *others = range(len(table.columns))
    blocks: list[list[int]] = []
    for place in others:
        if blocks and _width(console, _part(table, [first, *blocks[-1], place])) <= console.width:
            blocks[-1].append(place)
        else:
            blocks.append([place])
    parts = [_part(table, [first, *places]) for places in blocks]
    parts[0].title, parts[-1].caption = table.title, table.caption
    return parts


def _part(table: Table, places: Iterable[int]) -> Table:
    """A table with some of the columns, without title and caption."""
    part = Table(
        *(
            Column(each.header, justify=each.justify, overflow=each.overflow, max_width=each.max_width)
            for each in (table.columns[place] for place in places)
        ),
        box=table.box,
        pad_edge=table.pad_edge,
        title_justify=table.title_justify,
        caption_justify=table.caption_justify,
    )
    cells = [list(table.columns[place].cells) for place in places]
    for number, row in enumerate(table.rows):
        part.add_row(*(column[number] for column in cells), style=row.style, end_section=row.end_section)
    return part


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum
