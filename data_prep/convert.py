r"""Converts MMEB-train, or your own pairs, into shards that training reads by random access.

    python -m data_prep.convert --dataset_name pairs.jsonl --output_dir SHARDS
    python -m data_prep.convert --dataset_name MMEB-train --subset_name all --split_name original \
        --num_sample_per_subset 50000 --output_dir SHARDS

Images are copied byte for byte, and decoded once to check them. The same input gives the same bytes for any number of
workers. After a kill, the same command continues. docs/own_data.md describes columns and formats of your own data.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from data_prep.command_line import (
    ALLOW_LINKS_HELP,
    EXIT_INCOMPLETE,
    NUM_WORKERS_HELP,
    Parser,
    not_negative,
    positive,
    share,
)
from data_prep.conversion import DEFAULT_TOLERANCE, Tolerance, convert
from data_prep.conversion_plan import DEFAULT_OPTIONS, Options
from data_prep.conversion_report import ConversionReport
from data_prep.download import download, download_whole
from data_prep.images import CHECKS
from data_prep.own.columns import FIELDS, ColumnsAction
from data_prep.own.folders import TABLE_SUFFIXES
from data_prep.own.pairs import instruction
from data_prep.own.source import OwnData, is_own, own_subsets
from data_prep.processes import available_cores
from data_prep.report_table import show_report
from data_prep.rows import Source
from data_prep.source import ALL_SUBSETS, DEFAULT_SPLIT, SourceData
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.words import counted


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.convert",
        description="Converts pairs of texts and images to shards for training: MMEB-train or your own data. Images "
        "are copied unchanged. The same input gives the same bytes; a conversion that was stopped is continued by the "
        "same command.",
        examples=(
            "python -m data_prep.convert --dataset_name demo/mini/MMEB-train --subset_name all --output_dir SHARDS",
            "python -m data_prep.convert --dataset_name pairs.jsonl --columns query=question query_image=photo "
            "positive=answer --image_dir photos --output_dir SHARDS",
        ),
    )
    _add_source_flags(made)
    _add_output_flags(made)
    return made


def _add_source_flags(made: AnyParser) -> None:
    group = made.add_argument_group("Source", "What is converted.")
    group.add_argument(
        "--dataset_name",
        nargs="+",
        required=True,
        metavar="NAME",
        help="Your own files (.jsonl, .csv, .tsv, .parquet) or dataset folders, one subset each; or the folder of "
        "MMEB-train, or its name on the Hugging Face hub.",
    )
    group.add_argument(
        *("--subset_name", "--subset"),
        nargs="+",
        metavar="NAME",
        help=f"For MMEB-train: subsets, or '{ALL_SUBSETS}' for every subset of this split. For your own data: a name "
        "for each file or folder. If not given: the names of the files or folders.",
    )
    group.add_argument(
        "--split_name",
        metavar="NAME",
        help=f"For MMEB-train: {DEFAULT_SPLIT} or diverse_instruction; if not given, {DEFAULT_SPLIT}. For your own "
        "folder: its split; if not given, the only one, or train.",
    )
    group.add_argument("--config_name", metavar="NAME", help="Configuration of your own Hugging Face dataset.")
    group.add_argument(
        "--columns",
        nargs="+",
        action=ColumnsAction,
        metavar="FIELD=COLUMN",
        help=f"Columns of your own data for {', '.join(FIELDS)}. If not given: the columns of these names, or MMEB's.",
    )
    group.add_argument("--instruction", type=instruction, help="Text to put before each query of your own data.")
    group.add_argument(
        "--num_sample_per_subset",
        type=positive,
        help="Convert only the first N rows of each subset. If not given: all.",
    )
    group.add_argument(
        "--image_dir",
        type=Path,
        metavar="DIR",
        help="Folder that the image paths of the tables are relative to, unpacked or as images_zip/<Subset>.zip. If "
        "not given: the folder of the dataset; for your own data, the folder of each table.",
    )
    group.add_argument("--allow_links", action="store_true", help=ALLOW_LINKS_HELP)


def _add_output_flags(made: AnyParser) -> None:
    group = made.add_argument_group("Output", "Where the shards go, and which faults of the data are tolerated.")
    group.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Folder for the shards: new, empty, or with an unfinished conversion of the same data.",
    )
    group.add_argument(
        "--rows_per_shard", type=positive, default=DEFAULT_OPTIONS.rows_per_shard, help="Rows per shard."
    )
    group.add_argument(
        "--check_images",
        choices=list(CHECKS),
        default="decode",
        help="How images are checked. decode: decode every image, which finds truncated ones. header: open it. none: "
        "only read its size from its first bytes.",
    )
    group.add_argument(
        "--max_missing",
        type=not_negative,
        default=0,
        help="Tolerate at most N missing or unreadable images; their rows are left out and counted.",
    )
    group.add_argument(
        "--max_unusable",
        type=share,
        default=DEFAULT_TOLERANCE.max_unusable,
        help="Tolerate at most this fraction of rows of a subset that no model can be trained on: an image without its "
        "tag, an image that is too thin, an empty row. They are left out and counted.",
    )
    group.add_argument("--num_workers", type=not_negative, default=available_cores(), help=NUM_WORKERS_HELP)


def _not_complete(output_dir: Path, report: ConversionReport, tolerance: Tolerance) -> str:
    found = []
    images = report.total.unusable_images
    if images > tolerance.max_missing:
        found.append(
            f"{counted(images, 'missing or unreadable image')}, more than --max_missing {tolerance.max_missing}: "
            f"add them and run the same command again, or leave them out with --max_missing {images}"
        )
    for name, subset in report.beyond(tolerance.max_unusable).items():
        needed = math.ceil(1000 * subset.unusable_share) / 1000
        found.append(
            f"{subset.unusable_rows} of {counted(subset.rows, 'row')} of {name} unusable, more than --max_unusable "
            f"{tolerance.max_unusable:g}: fix the table and convert into a new folder, or leave "
            f"them out with --max_unusable {needed:g}"
        )
    return f"{output_dir}: not complete: {'; '.join(found)}"


def _own_source(arguments: argparse.Namespace) -> Source:
    """The user's files and folders; a dataset on the hub is downloaded first."""
    names = arguments.dataset_name
    paths = []
    for name in names:
        path = Path(name)
        if path.suffix.lower() in TABLE_SUFFIXES and not path.exists():
            raise InputError(f"{name}: no such file")
        if not path.exists() and len(names) > 1:
            raise InputError(f"{name}: a dataset on the hub must be converted by itself; or download it first")
        paths.append(path if path.is_file() else download_whole(name))
    links = arguments.allow_links or not Path(names[0]).exists()  # the hub's client stores all files as links
    subsets = own_subsets(paths, arguments.subset_name, arguments.split_name, arguments.config_name)
    return OwnData(subsets, arguments.columns, arguments.instruction, arguments.image_dir, links)


def _mmeb_source(arguments: argparse.Namespace) -> Source:
    (name,) = arguments.dataset_name
    for flag in ("instruction", "config_name"):
        if (value := getattr(arguments, flag)) is not None:
            raise InputError(
                f"--{flag} {value}: {name} is read as MMEB-train, which has no {flag}; add --columns if it is your "
                "own data"
            )
    if arguments.subset_name is None:
        raise InputError(
            f"{name}: add --subset_name (names, or {ALL_SUBSETS}) for MMEB-train, or --columns for your own data"
        )
    dataset_dir = download(name, arguments.subset_name, arguments.split_name or DEFAULT_SPLIT)
    return SourceData(dataset_dir, arguments.image_dir or dataset_dir, arguments.subset_name, arguments.allow_links)


def main() -> int:
    """Parses the command line, converts, prints the report."""
    arguments = parser().parse_args()
    own = is_own(arguments.dataset_name, arguments.subset_name, arguments.split_name, arguments.columns is not None)
    source = _own_source(arguments) if own else _mmeb_source(arguments)
    options = Options(
        arguments.split_name or ("" if own else DEFAULT_SPLIT),
        *(arguments.num_sample_per_subset, arguments.rows_per_shard, arguments.check_images),
        *(arguments.columns, arguments.instruction),
    )
    tolerance = Tolerance(arguments.max_missing, arguments.max_unusable)
    conversion = convert(source, arguments.output_dir, options, tolerance, arguments.num_workers)
    show_report(conversion.report)
    if conversion.manifest is None:
        print(_not_complete(arguments.output_dir, conversion.report, tolerance))
        return EXIT_INCOMPLETE
    print(f"{arguments.output_dir}: complete, fingerprint {conversion.manifest.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
