"""`python -m eval.report`: puts the scores of runs side by side, in the terminal and in report.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.results import read_scores, write_text
from eval.table import Row, Run, ScoreTable, notes, paper_table, score_table
from vlm2vec.errors import InputError, OneLineErrors, run_program

REPORT_FILE = "report.md"
_NOT_SCORED = "-"


class _Parser(OneLineErrors, argparse.ArgumentParser):
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, show, write."""
    parser = _Parser(prog="python -m eval.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that eval.mmeb wrote")
    parser.add_argument("--names", nargs="+", default=None, help="one heading a run; default: the folders' names")
    arguments = parser.parse_args(argv)
    labels = name_runs(arguments.runs, arguments.names)
    runs = [Run(label, read_scores(path)) for label, path in zip(labels, arguments.runs, strict=True)]
    tables = [table for table in (score_table(runs), paper_table(runs)) if table]
    console = Console(highlight=False)
    for table in tables:
        console.print(to_terminal(table))
    console.print(*notes(runs), sep="\n", markup=False)
    report = arguments.runs[-1] / REPORT_FILE
    write_text(report, to_markdown(tables, notes(runs)))
    print(f"report: {report}")


def name_runs(runs: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """The columns' headings: the names given, else the folders' own, else (where two are equal) their paths.

    Raises:
        InputError: not as many names as runs, or a name given twice.
    """
    if names is not None:
        if len(names) != len(runs):
            raise InputError(f"--names has {len(names)} names for {len(runs)} runs; give one for each")
        if len(set(names)) != len(names):
            raise InputError(f"--names {' '.join(names)}: two runs have the same name")
        return list(names)
    folders = [run.resolve().name for run in runs]
    return folders if len(set(folders)) == len(folders) else [str(run) for run in runs]


def to_terminal(table: ScoreTable) -> Table:
    """A table for a terminal."""
    view = Table(title=escape(table.title), title_justify="left")
    for heading, is_text in zip(table.headings, _text_columns(table), strict=True):
        view.add_column(escape(heading), justify="left" if is_text else "right", overflow="fold")
    for section in table.sections:
        for row in section:
            view.add_row(*(escape(cell) for cell in _texts(row)), style="bold" if row.is_mean else None)
        view.add_section()
    return view


def to_markdown(tables: Sequence[ScoreTable], lines: Sequence[str]) -> str:
    """The same tables for a file, with the notes below."""
    text: list[str] = []
    for number, table in enumerate(tables):
        text += [f"{'##' if number else '#'} {table.title}", "", _line(table.headings)]
        text += [_line(["---" if is_text else "---:" for is_text in _text_columns(table)])]
        for row in (row for section in table.sections for row in section):
            text.append(_line([f"**{cell}**" if row.is_mean and cell else cell for cell in _texts(row)]))
        text.append("")
    return "\n".join([*text, *(f"- {line}" for line in lines), ""])


def _text_columns(table: ScoreTable) -> list[bool]:
    return [isinstance(cell, str) for cell in table.sections[0][0].cells]


def _texts(row: Row) -> list[str]:
    return [cell if isinstance(cell, str) else _NOT_SCORED if cell is None else f"{cell:.1f}" for cell in row.cells]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(run_program(main))
