"""`python -m eval.report`: puts the scores of runs side by side, in the terminal, in report.md and in report.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from eval.original import IS_ORIGINAL
from eval.results import prepare_output, read_scores, write_text
from eval.table import Run, ScoreTable, metrics_table, notes, paper_table, score_table, step_of
from vlm2vec.errors import InputError, OneLineErrors, run_program
from vlm2vec.messages.terminal import column, open_console, print_table

MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, show, write."""
    parser = OneLineErrors(prog="python -m eval.report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder that eval.mmeb (or the original) wrote"
    )
    parser.add_argument("--names", nargs="+", default=None, help="one heading a run; default: the folders' names")
    parser.add_argument(
        "--steps", nargs="+", type=int, help="one training step a run; default: what a name like checkpoint-400 says"
    )
    parser.add_argument("--output_dir", type=Path, help="folder of the reports; default: the last run's")
    parser.add_argument(
        "--image_dir", type=Path, help="pictures of the last run; default: where they were when it was scored"
    )
    parser.add_argument(
        "--allow_links", action="store_true", help="follow links that lead out of the image folder; default: refused"
    )
    parser.add_argument("--misses", type=int, default=3, help="worst misses to show of each dataset; default: 3")
    arguments = parser.parse_args(argv)
    runs = read_runs(arguments.runs, arguments.names, arguments.steps)
    tables = [table for table in (score_table(runs), paper_table(runs), metrics_table(runs)) if table]
    console = open_console()
    for table in tables:
        print_table(console, to_terminal(table))
    console.print(*notes(runs), sep="\n", markup=False)
    output = arguments.output_dir or arguments.runs[-1]
    prepare_output(output)
    write_text(output / MARKDOWN_FILE, to_markdown(tables, notes(runs)))
    images = (arguments.image_dir, arguments.allow_links)
    write_text(output / PAGE_FILE, to_page(runs, arguments.runs[-1], *images, arguments.misses))
    print(f"report: {output / MARKDOWN_FILE} and {output / PAGE_FILE}")


def read_runs(folders: Sequence[Path], names: Sequence[str] | None, steps: Sequence[int] | None) -> list[Run]:
    """The runs under their headings.

    Raises:
        InputError: see `name_runs` and `read_scores`; or not as many steps as runs.
    """
    if steps is not None and len(steps) != len(folders):
        raise InputError(f"--steps has {len(steps)} numbers for {len(folders)} runs; give one for each")
    runs = []
    for number, (label, folder) in enumerate(zip(name_runs(folders, names), folders, strict=True)):
        summary = read_scores(folder)
        step = steps[number] if steps is not None else step_of(label, folder, summary)
        runs.append(Run(label, summary, step))
    return runs


def to_page(runs: Sequence[Run], folder: Path, image_dir: Path | None, allow_links: bool, num_misses: int) -> str:
    """`report.html`, with the misses of the last run, which lies in `folder`.

    Raises:
        InputError: its predictions are missing, or the report's packages.
    """
    try:
        from eval.misses import Gallery, galleries
        from eval.page import render
    except ImportError as error:
        raise InputError(f"{PAGE_FILE} needs {error.name}; install it with pip install '.[report]'") from error
    gallery = Gallery(folder, runs[-1].summary, image_dir, allow_links)
    scored = [] if runs[-1].summary.get(IS_ORIGINAL) else list(runs[-1].datasets)  # the original keeps no rows
    misses = galleries(gallery, scored, num_misses)
    return render(runs, misses, gallery.num_missing)


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
    texts = zip(table.headings, _text_columns(table), strict=True)
    columns = (column(escape(heading), "left" if is_text else "right") for heading, is_text in texts)
    view = Table(*columns, title=escape(table.title), title_justify="left")
    for section in table.sections:
        for row in section:
            view.add_row(*(escape(cell) for cell in row.texts()), style="bold" if row.is_mean else None)
        view.add_section()
    return view


def to_markdown(tables: Sequence[ScoreTable], lines: Sequence[str]) -> str:
    """The same tables for a file, with the notes below."""
    text: list[str] = []
    for number, table in enumerate(tables):
        text += [f"{'##' if number else '#'} {table.title}", "", _line(table.headings)]
        text += [_line(["---" if is_text else "---:" for is_text in _text_columns(table)])]
        for row in (row for section in table.sections for row in section):
            text.append(_line([f"**{cell}**" if row.is_mean and cell else cell for cell in row.texts()]))
        text.append("")
    return "\n".join([*text, *(f"- {line}" for line in lines), ""])


def _text_columns(table: ScoreTable) -> list[bool]:
    return [isinstance(cell, str) for cell in table.sections[0][0].cells]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(run_program(main))
