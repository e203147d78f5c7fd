"""A conversion from start to end: plan, independent tasks that write shards, report, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.conversion_plan import DEFAULT_OPTIONS, ConversionPlan, Options, make_plan, write_plan
from data_prep.conversion_report import ConversionReport, make_report
from data_prep.locking import locked
from data_prep.processes import run_tasks
from data_prep.rows import Source
from data_prep.shard_tasks import ShardResult, make_shard
from vlm2vec.errors import InputError
from vlm2vec.files import TEMPORARY_PREFIX
from vlm2vec.messages.progress import progress_bar
from vlm2vec.shards.manifest import Manifest, SubsetRecord
from vlm2vec.shards.schema import MANIFEST_NAME, PLAN_NAME

# Characters in a path that webdataset would read as a URL or as braces to expand.
_MISREAD = frozenset("#?{}")


@dataclass(frozen=True)
class Tolerance:
    """How much may be left out of the shards; if it is more, no manifest is written.

    Attributes:
        max_missing: At most this many missing or unreadable images. Once these are added, the same conversion
            completes the shards.
        max_unusable: At most this share (0 to 1) of a subset's rows that no model can be trained on.
    """

    max_missing: int = 0
    # A few bad rows are tolerable; many mean that the table itself is wrong.
    max_unusable: float = 0.05

    def is_exceeded(self, report: ConversionReport) -> bool:
        """Whether a conversion left out more than this."""
        return report.total.unusable_images > self.max_missing or bool(report.beyond(self.max_unusable))


# No missing images, and few unusable rows.
DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion. Without a manifest (too much is missing) the shards cannot be used yet."""

    report: ConversionReport
    manifest: Manifest | None


def convert(
    source: Source,
    output_dir: Path,
    options: Options = DEFAULT_OPTIONS,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    num_workers: int = 0,
) -> Conversion:
    """Converts subsets of one split, or continues a conversion of the same.

    Args:
        source: The subsets' tables and images.
        output_dir: Is created if necessary; may contain part of the same conversion, from an earlier run.
        options: The options that decide the shards' content.
        tolerance: How much may be left out.
        num_workers: Number of worker processes; 0 converts in this process.

    Raises:
        InputError: An argument or the data is wrong, the folder belongs to a different conversion, a subset has no
            usable row, or the disk is full. The message names file and row.
    """
    if _MISREAD.intersection(str(output_dir.absolute())):
        raise InputError(
            f"{output_dir}: webdataset cannot open tars in a path that contains any of {' '.join(sorted(_MISREAD))}"
        )
    plan = make_plan(source, output_dir, options)
    with locked(output_dir, "another conversion is writing here"):
        _prepare(output_dir, plan)
        try:
            shards = _make_shards(plan, num_workers)
            report = make_report(output_dir, shards, plan.unused_columns())
            report.write(output_dir)
            for name, subset in report.subsets.items():
                if subset.samples == 0 and subset.unusable_images <= tolerance.max_missing:
                    left_out = subset.skipped or "none"
                    raise InputError(f"{source.where(name)}: no usable row (left out: {left_out})")
            if tolerance.is_exceeded(report):
                return Conversion(report, None)
            manifest = _manifest(plan, shards)
            manifest.write(output_dir)
        except OSError as error:
            place = error.filename or output_dir
            raise InputError(f"{place}: {error.strerror}; run the same command again to continue") from error
    return Conversion(report, manifest)


def _prepare(output_dir: Path, plan: ConversionPlan) -> None:
    """Writes the plan into an empty folder; a folder that has a plan must have the same.

    The manifest is removed first and written last, because the shards that it lists may change in between.
    """
    if (output_dir / PLAN_NAME).exists():
        plan.refuse_unless_same(output_dir / PLAN_NAME)
        for folder in (output_dir, *(output_dir / name for name in plan.tasks)):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink()
    else:
        leftovers = list(output_dir.glob(f"{TEMPORARY_PREFIX}*-{PLAN_NAME}"))
        if set(output_dir.iterdir()) - set(leftovers):
            raise InputError(f"{output_dir}: not empty, and not a folder of this program; choose a different one")
        for leftover in leftovers:
            leftover.unlink()
        write_plan(plan, output_dir)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)


def _make_shards(plan: ConversionPlan, num_workers: int) -> dict[str, list[ShardResult]]:
    tasks = [task for subset in plan.tasks.values() for task in subset]
    results: dict[tuple[str, int], ShardResult] = {}
    total = sum(task.rows[1] - task.rows[0] for task in tasks)
    with progress_bar(total, "convert", "row") as progress:
        for task, result in run_tasks(make_shard, tasks, num_workers):
            results[task.subset, task.number] = result
            progress.update(task.rows[1] - task.rows[0])
    return {name: [results[name, task.number] for task in subset] for name, subset in plan.tasks.items()}


def _manifest(plan: ConversionPlan, shards: Mapping[str, Sequence[ShardResult]]) -> Manifest:
    subsets = {
        name: SubsetRecord(plan.sources[name], tuple(result.record for result in results))
        for name, results in shards.items()
    }
    return Manifest(options=plan.options.content(), subsets=subsets)
