"""Converts MMEB-train (parquet tables and loose pictures) into shards that training reads by random access.

    python -m data_prep.convert --dataset_name MMEB-train --image_dir MMEB-train \\
        --subset_name all --split_name original --num_sample_per_subset 50000 --output_dir SHARDS

Pictures are copied as they are, and decoded once to make sure that they can be. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from data_prep.conversion import ShardTask, plan_shards, write_shard
from data_prep.source import ALL_SUBSETS, SourceTable, source_tables, subset_names
from vlm2vec.errors import InputError, run_program
from vlm2vec.image_folder import ImageFolder
from vlm2vec.shards.manifest import Manifest, ShardRecord, SourceRecord, SubsetRecord

# 2,048 pairs with two photographs of 75 KB each are a shard of 300 MB.
DEFAULT_ROWS_PER_SHARD = 2048


def convert(
    dataset_dir: Path,
    image_dir: Path,
    output_dir: Path,
    subsets: list[str],
    split: str = "original",
    max_rows: int | None = None,
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
) -> Manifest:
    """Converts subsets of one split.

    Args:
        dataset_dir: MMEB-train's folder.
        image_dir: what the tables' picture paths are relative to.
        output_dir: is created; must be empty if it exists. After an error it is as it was before.
        subsets: their names, or ["all"].
        split: "original", "diverse_instruction", or another file prefix.
        max_rows: at most so many rows of each subset, the first ones (the original's --num_sample_per_subset).
        rows_per_shard: source rows per shard.

    Raises:
        InputError: anything wrong with these or with what they name; the message says file and row.
    """
    names = subset_names(dataset_dir, subsets, split)
    tables = {name: source_tables(dataset_dir, name, split) for name in names}
    plans = {name: plan_shards(name, tables[name], rows_per_shard, max_rows) for name in names}
    ImageFolder(image_dir)
    existed = _prepared_output(output_dir)
    try:
        shards = _write_shards([task for plan in plans.values() for task in plan], image_dir, output_dir)
        manifest = Manifest(
            options={"split": split, "num_sample_per_subset": max_rows, "rows_per_shard": rows_per_shard},
            subsets={name: SubsetRecord(_sources(dataset_dir, tables[name]), tuple(shards[name])) for name in names},
        )
        for name, subset in manifest.subsets.items():
            if subset.num_samples == 0:
                raise InputError(f"{dataset_dir / name}: no usable row (skipped: {subset.skipped or 'none'})")
        manifest.write(output_dir)
    except BaseException:
        _remove_written(output_dir, names, existed)
        raise
    return manifest


def _prepared_output(output_dir: Path) -> bool:
    """Creates the output folder; whether it existed before, which it may if it is empty."""
    existed = output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if any(output_dir.iterdir()):
            raise InputError(f"{output_dir}: not an empty folder; remove it or choose another")
    except OSError as error:
        raise InputError(f"{output_dir}: cannot create the folder ({error.strerror})") from error
    return existed


def _write_shards(tasks: list[ShardTask], image_dir: Path, output_dir: Path) -> dict[str, list[ShardRecord]]:
    shards: dict[str, list[ShardRecord]] = {task.subset: [] for task in tasks}
    total = sum(task.rows[1] - task.rows[0] for task in tasks)
    with tqdm(total=total, unit=" rows", disable=None) as bar:  # None: only on a terminal
        for task in tasks:
            bar.set_description(task.subset)
            shards[task.subset].append(write_shard(task, image_dir, output_dir, bar.update))
    return shards


def _sources(dataset_dir: Path, tables: list[SourceTable]) -> tuple[SourceRecord, ...]:
    return tuple(
        SourceRecord(
            file=str(table.path.relative_to(dataset_dir)),
            sha256=table.sha256(),
            bytes=table.path.stat().st_size,
            rows=table.num_rows,
        )
        for table in tables
    )


def _remove_written(output_dir: Path, names: list[str], existed: bool) -> None:
    for name in names:
        shutil.rmtree(output_dir / name, ignore_errors=True)
    if not existed:
        output_dir.rmdir()


def report(manifest: Manifest) -> str:
    """A table of what was converted: samples, skipped rows by reason, shards, size, pictures stored more than once."""
    width = max(len(name) for name in (*manifest.subsets, "subset"))
    lines = [f"{'subset':<{width}}  samples  skipped  shards        MB  repeated images  reasons"]
    for name, subset in manifest.subsets.items():
        size = sum(shard.bytes for shard in subset.shards)
        repeated = sum(shard.duplicate_image_bytes for shard in subset.shards)
        reasons = ", ".join(f"{reason}: {count}" for reason, count in subset.skipped.items())
        lines.append(
            f"{name:<{width}}  {subset.num_samples:>7}  {sum(subset.skipped.values()):>7}  {len(subset.shards):>6}"
            f"  {size / 1e6:>8.1f}  {repeated / size:>15.1%}  {reasons}".rstrip()
        )
    total = sum(subset.num_samples for subset in manifest.subsets.values())
    lines.append(f"{total} samples in {len(manifest.subsets)} subsets, fingerprint {manifest.fingerprint}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> None:
    """Parses the command line, converts, prints the report."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.convert", description="Convert MMEB-train to shards.")
    parser.add_argument("--dataset_name", type=Path, required=True, help="MMEB-train's folder")
    parser.add_argument(
        "--subset_name", nargs="+", required=True, help=f"subsets, or '{ALL_SUBSETS}' for every one of this split"
    )
    parser.add_argument("--split_name", default="original", help="original (default) or diverse_instruction")
    parser.add_argument(
        "--num_sample_per_subset", type=_positive, help="convert only so many rows of each subset, the first ones"
    )
    parser.add_argument("--image_dir", type=Path, required=True, help="what the tables' picture paths are relative to")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the shards; must be empty or new")
    parser.add_argument("--rows_per_shard", type=_positive, default=DEFAULT_ROWS_PER_SHARD, help="default: %(default)s")
    arguments = parser.parse_args()
    manifest = convert(
        arguments.dataset_name,
        arguments.image_dir,
        arguments.output_dir,
        arguments.subset_name,
        arguments.split_name,
        arguments.num_sample_per_subset,
        arguments.rows_per_shard,
    )
    print(report(manifest))


if __name__ == "__main__":
    sys.exit(run_program(main))
