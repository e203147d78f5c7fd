"""Converts MMEB-train (tables and pictures, unpacked or zipped) into shards that training reads by random access.

    python -m data_prep.convert --dataset_name MMEB-train --subset_name all --split_name original \\
        --num_sample_per_subset 50000 --output_dir SHARDS

Pictures are copied as they are, and decoded once to make sure that they can be. The same input gives the same bytes,
for any number of workers. Killed at any moment, the same command continues where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep.arguments import ALLOW_LINKS_HELP, EXIT_INCOMPLETE, Parser, not_negative, positive, share
from data_prep.conversion import ShardResult, make_shard
from data_prep.download import download
from data_prep.pictures import CHECKS
from data_prep.plan import Options, Plan, make_plan, write_plan
from data_prep.processes import available_cores, run_tasks
from data_prep.report import Report, make_report
from data_prep.report_table import show_report
from data_prep.source import ALL_SUBSETS
from vlm2vec.errors import InputError, run_program
from vlm2vec.files import TEMPORARY_PREFIX
from vlm2vec.messages.words import counted
from vlm2vec.shards.manifest import Manifest, SubsetRecord
from vlm2vec.shards.schema import MANIFEST_NAME, PLAN_NAME

# 2,048 pairs with two photographs of 75 KB each are a shard of 300 MB.
DEFAULT_ROWS_PER_SHARD = 2048
# webdataset takes a path for a URL and expands braces.
_MISREAD = frozenset("#?{}")
# Workers of a killed run end within moments; another run does not.
_LOCK_SECONDS = 5.0
# Rows of a subset that no model can be trained on: a few slips of a table are left out, a whole table of them is not.
DEFAULT_MAX_UNUSABLE = 0.05


@dataclass(frozen=True)
class Conversion:
    """What came of it; without a manifest (too much is missing) the shards cannot be used yet."""

    report: Report
    manifest: Manifest | None


def convert(
    dataset_dir: Path,
    image_dir: Path,
    output_dir: Path,
    subsets: list[str],
    split: str = "original",
    max_rows: int | None = None,
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
    check_images: str = "decode",
    max_missing: int = 0,
    max_unusable: float = DEFAULT_MAX_UNUSABLE,
    num_workers: int = 0,
    allow_links: bool = False,
) -> Conversion:
    """Converts subsets of one split, or continues a conversion of the same.

    Args:
        dataset_dir: MMEB-train's folder.
        image_dir: what the tables' picture paths are relative to; what is not unpacked there is read from its
            images_zip/<Subset>.zip.
        output_dir: is created; an earlier run of the same conversion may have begun to fill it.
        subsets: their names, or ["all"].
        split: "original", "diverse_instruction", or another file prefix.
        max_rows: at most so many rows of each subset, the first ones (the original's --num_sample_per_subset).
        rows_per_shard: source rows per shard.
        check_images: "decode", "header" or "none".
        max_missing: at most this many missing or unreadable images are left out; with more, no manifest is written.
            Once the images are there, the same call completes the shards.
        max_unusable: at most this share of a subset's rows is left out because no model can be trained on them; with
            more, no manifest is written.
        num_workers: processes; 0 converts in this one.
        allow_links: follow links that lead out of `image_dir`.

    Raises:
        InputError: anything wrong with these or with what they name, another conversion's folder, no usable row, no
            space left; the message says file and row.
    """
    if _MISREAD.intersection(str(output_dir.absolute())):
        raise InputError(
            f"{output_dir}: webdataset cannot open tars below a path with any of {' '.join(sorted(_MISREAD))}"
        )
    options = Options(split, max_rows, rows_per_shard, check_images)
    plan = make_plan(dataset_dir, image_dir, output_dir, subsets, options, allow_links)
    with _locked(output_dir):
        _prepare(output_dir, plan)
        try:
            shards = _make_shards(plan, num_workers)
            report = make_report(output_dir, shards, plan.unused_columns())
            report.write(output_dir)
            for name, subset in report.subsets.items():
                if subset.samples == 0 and subset.unusable_images <= max_missing:
                    raise InputError(f"{dataset_dir / name}: no usable row (left out: {subset.skipped or 'none'})")
            if report.total.unusable_images > max_missing or report.beyond(max_unusable):
                return Conversion(report, None)
            manifest = _manifest(plan, shards)
            manifest.write(output_dir)
        except OSError as error:
            raise InputError(f"{error.filename or output_dir}: {error.strerror}; the same command continues") from error
    return Conversion(report, manifest)


@contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """Creates the folder and keeps other conversions out of it until this one and all its workers have ended."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{output_dir}: cannot create the folder ({error.strerror})") from error
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise InputError(f"{output_dir}: another conversion is writing here") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _prepare(output_dir: Path, plan: Plan) -> None:
    """Makes the folder this plan's: an empty one gets the plan, a begun one must have the same.

    A manifest would vouch for shards that may be about to change, so it goes first and comes back last.
    """
    if (output_dir / PLAN_NAME).exists():
        plan.refuse_unless_same(output_dir / PLAN_NAME)
        for folder in (output_dir, *(output_dir / name for name in plan.tasks)):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink()
    else:
        leftovers = list(output_dir.glob(f"{TEMPORARY_PREFIX}*-{PLAN_NAME}"))
        if set(output_dir.iterdir()) - set(leftovers):
            raise InputError(f"{output_dir}: not an empty folder, and no conversion's; choose another")
        for leftover in leftovers:
            leftover.unlink()
        write_plan(plan, output_dir)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)


def _make_shards(plan: Plan, num_workers: int) -> dict[str, list[ShardResult]]:
    tasks = [task for subset in plan.tasks.values() for task in subset]
    results: dict[tuple[str, int], ShardResult] = {}
    total = sum(task.rows[1] - task.rows[0] for task in tasks)
    with tqdm(total=total, unit=" rows", unit_scale=True, disable=None) as bar:  # None: only on a terminal
        for task, result in run_tasks(make_shard, tasks, num_workers):
            results[task.subset, task.number] = result
            bar.set_description(task.subset, refresh=False)
            bar.update(task.rows[1] - task.rows[0])
    return {name: [results[name, task.number] for task in subset] for name, subset in plan.tasks.items()}


def _manifest(plan: Plan, shards: Mapping[str, Sequence[ShardResult]]) -> Manifest:
    subsets = {
        name: SubsetRecord(plan.sources[name], tuple(result.record for result in results))
        for name, results in shards.items()
    }
    return Manifest(options=asdict(plan.options), subsets=subsets)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data_prep.convert", description="Convert MMEB-train to shards.")
    parser.add_argument("--dataset_name", required=True, help="MMEB-train's folder, or its name on the hub")
    parser.add_argument(
        "--subset_name", nargs="+", required=True, help=f"subsets, or '{ALL_SUBSETS}' for every one of this split"
    )
    parser.add_argument("--split_name", default="original", help="original (default) or diverse_instruction")
    parser.add_argument(
        "--num_sample_per_subset", type=positive, help="convert only so many rows of each subset, the first ones"
    )
    parser.add_argument(
        "--image_dir",
        type=Path,
        help="what the tables' picture paths are relative to, unpacked or as images_zip/<Subset>.zip "
        "(default: the data set's folder)",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the shards; new, empty, or begun before")
    parser.add_argument("--rows_per_shard", type=positive, default=DEFAULT_ROWS_PER_SHARD, help="default: %(default)s")
    parser.add_argument(
        "--check_images",
        choices=list(CHECKS),
        default="decode",
        help="decode every picture (default: finds half ones), open it, or only take its size from its first bytes",
    )
    parser.add_argument(
        "--max_missing",
        type=not_negative,
        default=0,
        help="leave out at most this many missing or unreadable images (default 0)",
    )
    parser.add_argument(
        "--max_unusable",
        type=share,
        default=DEFAULT_MAX_UNUSABLE,
        help="leave out at most this share of a subset's rows because no model can be trained on them: an image "
        "without its tag, an image too thin, nothing in them (default: %(default)s)",
    )
    parser.add_argument(
        "--num_workers", type=not_negative, default=available_cores(), help="processes (default: cores, %(default)s)"
    )
    parser.add_argument("--allow_links", action="store_true", help=ALLOW_LINKS_HELP)
    return parser


def _not_complete(output_dir: Path, report: Report, max_missing: int, max_unusable: float) -> str:
    found = []
    images = report.total.unusable_images
    if images > max_missing:
        found.append(
            f"{counted(images, 'missing or unreadable image')}, more than --max_missing {max_missing}: once they are "
            f"there, the same command completes it; --max_missing {images} leaves them out"
        )
    for name, subset in report.beyond(max_unusable).items():
        needed = math.ceil(1000 * subset.unusable_share) / 1000
        found.append(
            f"{subset.unusable_rows} of {counted(subset.rows, 'row')} of {name} unusable, more than --max_unusable "
            f"{max_unusable:g}: mend the table and convert into a new folder; --max_unusable {needed:g} leaves them out"
        )
    return f"{output_dir}: not complete: {'; '.join(found)}"


def main() -> int:
    """Parses the command line, converts, prints the report."""
    arguments = _parser().parse_args()
    dataset_dir = download(arguments.dataset_name, arguments.subset_name, arguments.split_name)
    conversion = convert(
        dataset_dir,
        arguments.image_dir or dataset_dir,
        arguments.output_dir,
        arguments.subset_name,
        arguments.split_name,
        arguments.num_sample_per_subset,
        arguments.rows_per_shard,
        arguments.check_images,
        arguments.max_missing,
        arguments.max_unusable,
        arguments.num_workers,
        arguments.allow_links,
    )
    show_report(conversion.report)
    if conversion.manifest is None:
        print(_not_complete(arguments.output_dir, conversion.report, arguments.max_missing, arguments.max_unusable))
        return EXIT_INCOMPLETE
    print(f"{arguments.output_dir}: complete, fingerprint {conversion.manifest.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
