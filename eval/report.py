"""`python -m eval.report`: puts the scores of runs side by side: terminal, report.md, report.html, report.csv."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from eval.cells import ScoreTable
from eval.comparison import Comparison
from eval.csv_file import to_csv
from eval.invocation import read_invocations
from eval.original import IS_ORIGINAL, is_original
from eval.results import prepare_output, read_scores, write_text
from eval.retrieval_table import RetrievalRun, read_retrieval
from eval.table import Run, step_of
from vlm2vec.errors import InputError, run_program
from vlm2vec.evaluation.scores_file import SCORES_FILE
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.terminal import column, open_console, print_table

MARKDOWN_FILE, PAGE_FILE, CSV_FILE = "report.md", "report.html", "report.csv"
# Where the original, and whoever follows its layout, keeps the groups of MMEB-V2.
IMAGE_FOLDER, VISDOC_FOLDER, VIDEO_FOLDER = "image", "visdoc", "video"
# Of cells of a kind, on a terminal.
_STYLES = {"best": "bold green", "up": "green", "down": "red"}


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m eval.report",
        description="Compares evaluation runs: tables on the terminal and in Markdown, CSV, and a page with images.",
        examples=(
            "python -m eval.report demo/scores/untrained demo/scores/trained --names untrained trained --output_dir "
            "demo/report",
        ),
    )
    made.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="Folder that eval.mmeb, eval.retrieval or the original code wrote, or one that holds such folders as "
        "image/, visdoc/ and video/.",
    )
    made.add_argument(
        "--names", nargs="+", metavar="NAME", help="One heading per run. If not given: the names of the folders."
    )
    made.add_argument(
        "--baseline",
        metavar="NAME",
        help="Heading of the run that the others are compared with. If not given: the first run.",
    )
    made.add_argument(
        "--steps",
        nargs="+",
        type=int,
        help="One training step per run. If not given: the number in a name like checkpoint-400.",
    )
    made.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="Folder for the reports. If not given: the last run's.",
    )
    made.add_argument(
        "--image_dir",
        type=Path,
        metavar="DIR",
        help="Folder of the last run's images. If not given: where they were when it was scored.",
    )
    made.add_argument(
        "--allow_links", action="store_true", help="Follow symbolic links that lead out of the image folder."
    )
    made.add_argument("--misses", type=int, default=3, help="Number of worst misses to show per dataset.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, show, write."""
    arguments = parser().parse_args(argv)
    labels = name_runs(arguments.runs, arguments.names)
    baseline = choose_baseline(labels, arguments.baseline)
    retrievals = read_retrievals(arguments.runs, labels)
    videos = read_videos(arguments.runs, labels)
    others = {*(run.label for run in retrievals), *(run.label for run in videos)}
    runs = read_runs(arguments.runs, labels, arguments.steps, others)
    comparison = Comparison(runs, retrievals, videos, baseline)
    tables, lines = comparison.tables(), comparison.notes()
    console = open_console()
    for table in tables:
        print_table(console, to_terminal(table))
    console.print(*lines, sep="\n", markup=False)
    output = arguments.output_dir or arguments.runs[-1]
    prepare_output(output)
    write_text(output / MARKDOWN_FILE, to_markdown(tables, lines))
    write_text(output / CSV_FILE, to_csv(runs, retrievals))
    files = [MARKDOWN_FILE, CSV_FILE]
    if runs:
        last = next(folder for folder, label in zip(arguments.runs, labels, strict=True) if label == runs[-1].label)
        images = (arguments.image_dir, arguments.allow_links)
        page = to_page(comparison, _image_run(last), *images, arguments.misses)
        write_text(output / PAGE_FILE, page)
        files.append(PAGE_FILE)
    print(f"report: {', '.join(str(output / name) for name in files)}")


def choose_baseline(labels: Sequence[str], wanted: str | None) -> str:
    """The heading of the run that the others are compared with.

    Raises:
        InputError: There is none of that name, or nothing to compare.
    """
    if wanted is None:
        return labels[0]
    if len(labels) < 2:
        raise InputError(f"--baseline {wanted}: no effect on a single run; give two or more, or leave it out")
    if wanted not in labels:
        raise InputError(f"--baseline {wanted}: is none of the runs ({', '.join(labels)})")
    return wanted


def read_retrievals(folders: Sequence[Path], labels: Sequence[str]) -> list[RetrievalRun]:
    """The runs of `eval.retrieval` among the folders, or in their `visdoc/`.

    Raises:
        InputError: See `read_retrieval`.
    """
    found = []
    for folder, label in zip(folders, labels, strict=True):
        for each in (folder, folder / VISDOC_FOLDER):
            if (summary := read_retrieval(each)) is not None:
                found.append(RetrievalRun(label, summary, tuple(read_invocations(each))))
                break
    return found


def read_videos(folders: Sequence[Path], labels: Sequence[str]) -> list[Run]:
    """The runs of `eval.mmeb` on clips in the folders' `video/`.

    Raises:
        InputError: See `read_scores`.
    """
    inside = [(folder / VIDEO_FOLDER, label) for folder, label in zip(folders, labels, strict=True)]
    return [
        Run(label, read_scores(folder), calls=tuple(read_invocations(folder)))
        for folder, label in inside
        if (folder / SCORES_FILE).is_file()
    ]


def read_runs(
    folders: Sequence[Path],
    labels: Sequence[str],
    steps: Sequence[int] | None,
    others: Collection[str] = (),
) -> list[Run]:
    """The runs of `eval.mmeb` under their headings.

    Args:
        folders: Of all runs.
        labels: Their headings.
        steps: Their training steps, one each; None: what names say.
        others: Headings of the folders that need no scores of `eval.mmeb`, because they have others.

    Raises:
        InputError: See `read_scores`; or not as many steps as runs.
    """
    if steps is not None and len(steps) != len(folders):
        raise InputError(f"--steps has {len(steps)} numbers for {len(folders)} runs; give one for each")
    runs = []
    for number, (label, folder) in enumerate(zip(labels, folders, strict=True)):
        own = _image_run(folder)
        if label in others and not (own / SCORES_FILE).is_file() and not is_original(own):
            continue
        summary = read_scores(own)
        step = steps[number] if steps is not None else step_of(label, folder, summary)
        runs.append(Run(label, summary, step, tuple(read_invocations(own))))
    return runs


def _image_run(folder: Path) -> Path:
    """The folder of a run's scores of images."""
    inside = folder / IMAGE_FOLDER
    return inside if inside.is_dir() and not (folder / SCORES_FILE).exists() else folder


def to_page(comparison: Comparison, folder: Path, image_dir: Path | None, allow_links: bool, num_misses: int) -> str:
    """`report.html`, with the misses of the last run, which lies in `folder`.

    Raises:
        InputError: Its predictions are missing, or the report's packages.
    """
    try:
        from eval.misses import Gallery, galleries
        from eval.page import render
    except ImportError as error:
        raise InputError(f"{PAGE_FILE} needs {error.name}; install it with pip install '.[report]'") from error
    last = comparison.runs[-1]
    gallery = Gallery(folder, last.summary, image_dir, allow_links)
    scored = [] if last.summary.get(IS_ORIGINAL) else list(last.datasets)  # the original keeps no rows
    misses = galleries(gallery, scored, num_misses)
    return render(comparison, misses, gallery.num_missing)


def name_runs(runs: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Headings of the columns: the given names, else the folders' names, or their paths where two names are equal.

    Raises:
        InputError: The number of names is not that of the runs, or a name is given twice.
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
    texts = zip(table.headings, table.text_columns, strict=True)
    columns = (column(escape(heading), "left" if is_text else "right") for heading, is_text in texts)
    view = Table(*columns, title=escape(table.title), title_justify="left")
    for section in table.sections:
        for row in section:
            cells = [
                f"[{_STYLES[kind]}]{escape(text)}[/]" if kind else escape(text)
                for text, kind in zip(row.texts(), row.kinds(), strict=True)
            ]
            view.add_row(*cells, style="bold" if row.is_mean else None)
        view.add_section()
    return view


def to_markdown(tables: Sequence[ScoreTable], lines: Sequence[str]) -> str:
    """The same tables for a file, with the notes below."""
    text: list[str] = []
    for number, table in enumerate(tables):
        text += [f"{'##' if number else '#'} {table.title}", "", _line(table.headings)]
        text += [_line(["---" if is_text else "---:" for is_text in table.text_columns])]
        for row in (row for section in table.sections for row in section):
            cells = zip(row.texts(), row.kinds(), strict=True)
            text.append(
                _line([f"**{cell}**" if cell and (row.is_mean or kind == "best") else cell for cell, kind in cells])
            )
        text.append("")
    return "\n".join([*text, *(f"- {line}" for line in lines), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(run_program(main))
