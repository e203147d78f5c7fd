"""Prints a conversion's report as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.conversion_report import ConversionReport, SubsetReport
from vlm2vec.messages.terminal import column, open_console, print_table
from vlm2vec.messages.words import counted


def show_report(report: ConversionReport) -> None:
    """Prints a table, and below it the missing or unreadable images and the unusable rows."""
    console = open_console()
    print_table(console, _table(report))
    for name, subset in report.subsets.items():
        if subset.unused_columns:
            unused = ", ".join(subset.unused_columns)
            console.print(f"{name}: columns not used: {unused}", markup=False, highlight=False, soft_wrap=True)
        for reason, count in subset.skipped.items():
            console.print(f"{name}: {counted(count, 'row')} left out: {reason}", markup=False, highlight=False)
        _show_names(console, name, "missing images", subset.missing_images, subset.first_missing)
        _show_names(console, name, "unreadable images", subset.unreadable_images, subset.first_unreadable)
        _show_names(console, name, "unusable rows", subset.unusable_rows, subset.first_unusable)


def _table(report: ConversionReport) -> Table:
    headings: tuple[str, ...] = ("rows", "left out", "shards", "MB", "images", "distinct", "repeated\npairs")
    headings += ("missing\nimages", "unreadable\nimages", "unusable\nrows")
    columns = (column("subset", "left"), *(column(heading) for heading in headings))
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name, subset in report.subsets.items():
        table.add_row(escape(name), *_cells(subset))
    table.add_section()
    table.add_row(f"all {len(report.subsets)}", *_cells(report.total))
    return table


def _cells(subset: SubsetReport) -> list[str]:
    return [
        f"{subset.rows:,}",
        f"{subset.rows - subset.samples:,}",
        f"{subset.shards:,}",
        f"{subset.bytes / 1e6:,.1f}",
        f"{subset.images:,}",
        f"{subset.distinct_images:,}",
        f"{subset.samples - subset.distinct_pairs:,}",
        _alarming(subset.missing_images),
        _alarming(subset.unreadable_images),
        _alarming(subset.unusable_rows),
    ]


def _alarming(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


def _show_names(console: Console, subset: str, kind: str, count: int, names: Sequence[str]) -> None:
    if not count:
        return
    console.print(f"{subset}: {count:,} {kind}:", markup=False, highlight=False)
    for name in names:
        console.print(f"  {name}", markup=False, highlight=False, soft_wrap=True)
    if count > len(names):
        console.print(f"  and {count - len(names):,} more", markup=False, highlight=False)
