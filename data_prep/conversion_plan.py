"""What a conversion will do, fixed before it begins and written down, so that a later run continues the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from data_prep.archive import ImageArchive
from data_prep.images import SubsetImages, UnusableImageError, archive_path, refuse_linked_folders
from data_prep.rows import Source, Table
from data_prep.shard_tasks import ShardTask
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import parsed
from vlm2vec.shards.manifest import SourceRecord, write_json
from vlm2vec.shards.schema import PLAN_NAME

PLAN_VERSION = 2
# Of each subset so many images are looked for before anything is written.
_PROBED_IMAGES = 20


@dataclass(frozen=True)
class Options:
    """What shapes the shards' content: the flags of the same names.

    Of pairs of one's own: `columns` and `instruction`; not written down where they are None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    split_name: str
    num_sample_per_subset: int | None
    rows_per_shard: int
    check_images: str
    columns: Mapping[str, str] | None = None
    instruction: str | None = None

    def content(self) -> dict[str, Any]:
        """What plan and manifest hold of it."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _OWN_OPTIONS}


_OWN_OPTIONS = ("columns", "instruction")
# 2,048 pairs with two photographs of 75 KB each are a shard of 300 MB. MMEB's options have no defaults: a plan's file
# must name them all.
DEFAULT_OPTIONS = Options("original", None, 2048, "decode")


@dataclass(frozen=True)
class ConversionPlan:
    """All shards to write, and the sources that they are written from."""

    options: Options
    tasks: Mapping[str, Sequence[ShardTask]]
    sources: Mapping[str, tuple[SourceRecord, ...]]

    def content(self) -> dict[str, Any]:
        """What the plan's file holds; paths are relative, so that it is the same wherever the data lie."""
        return {
            "plan_version": PLAN_VERSION,
            "options": self.options.content(),
            "sources": {name: [asdict(source) for source in sources] for name, sources in self.sources.items()},
        }

    def unused_columns(self) -> dict[str, list[str]]:
        """Each subset's columns that nothing reads."""
        return {
            name: list(dict.fromkeys(column for task in tasks for column in task.table.unused))
            for name, tasks in self.tasks.items()
        }

    def refuse_unless_same(self, path: Path) -> None:
        """Compares with the plan that an earlier run wrote to `path`.

        Raises:
            InputError: Damaged, or another option or source; the message says which.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        damaged = f"{path}: damaged (remove the folder and convert again)"
        version = parsed(_PLAN_VERSION_OF, data, damaged).plan_version
        if version != PLAN_VERSION:
            changes = f"another version of this program ({version}, not {PLAN_VERSION})"
        else:
            changes = _changes(parsed(_PLAN_FILE, data, damaged), self)
        if changes:
            raise InputError(
                f"{path.parent}: was begun with {changes}; give the same again, or remove the folder, or choose another"
            )


def make_plan(source: Source, output_dir: Path, options: Options) -> ConversionPlan:
    """Cuts the subsets' tables into ranges of rows and identifies the sources by their checksums.

    Raises:
        InputError: Anything wrong with the folders, the subsets or the tables; a zip that is not complete; a link
            that leads out of the image folder; images of which the first ones are all missing or cannot be used.
    """
    names = source.names(options.split_name)
    for name in names:
        refuse_linked_folders(source.image_dir_of(name), [name], source.allow_links)
    tasks, sources = {}, {}
    for name in names:
        image_dir, tables = source.image_dir_of(name), source.tables(name, options.split_name)
        _probe(SubsetImages(image_dir, name, source.allow_links), tables, image_dir)
        tasks[name] = _cut(name, tables, source, output_dir, options)
        sources[name] = (*(_table_record(table, source) for table in tables), *_archive_records(image_dir, name))
    return ConversionPlan(options, tasks, sources)


def _cut(subset: str, tables: Sequence[Table], source: Source, output_dir: Path, options: Options) -> list[ShardTask]:
    """Ranges of rows; a limit keeps the first rows, as the original does."""
    limit, step = options.num_sample_per_subset, options.rows_per_shard
    image_dir = source.image_dir_of(subset)
    tasks: list[ShardTask] = []
    for table in tables:
        end = table.first_row + table.num_rows
        end = end if limit is None else min(end, limit)
        for first in range(table.first_row, end, step):
            rows = (first, min(first + step, end))
            place = (subset, len(tasks), table, rows, image_dir, output_dir)
            tasks.append(ShardTask(*place, options.check_images, source.allow_links))
    return tasks


def _probe(images: SubsetImages, tables: Sequence[Table], image_dir: Path) -> None:
    """A wrong image folder, or a zip that cannot be read, is an error at once, not a million images later."""
    first: UnusableImageError | None = None
    for table in tables:
        for path in islice(table.image_paths(), _PROBED_IMAGES):
            try:
                images.check(path)
                return
            except UnusableImageError as error:
                first = first or error
    if first:
        raise InputError(f"{tables[0].path}: none of its first images below {image_dir} can be used: {first}")


def _table_record(table: Table, source: Source) -> SourceRecord:
    return SourceRecord(source.file_name(table), table.sha256(), table.path.stat().st_size, table.num_rows)


def _archive_records(image_dir: Path, subset: str) -> list[SourceRecord]:
    """The subset's zip, by the checksum of its directory, which holds every member's checksum."""
    path = archive_path(image_dir, subset)
    if not path.exists():
        return []
    return [SourceRecord(str(path.relative_to(image_dir)), ImageArchive(path).digest(), path.stat().st_size, 0)]


def write_plan(plan: ConversionPlan, output_dir: Path) -> None:
    """Writes the plan's file."""
    write_json(output_dir / PLAN_NAME, plan.content())


@dataclass(frozen=True)
class _PlanVersion:
    """Of the plan's file; asked first, as files of other versions need not fit the schema."""

    plan_version: int


@dataclass(frozen=True)
class _PlanFile(_PlanVersion):
    """The plan's file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    options: Options
    sources: dict[str, tuple[SourceRecord, ...]]


_PLAN_VERSION_OF, _PLAN_FILE = TypeAdapter(_PlanVersion), TypeAdapter(_PlanFile)


def _changes(earlier: _PlanFile, now: ConversionPlan) -> str:
    """Names what differs, "" if nothing does."""
    before_options = asdict(earlier.options)
    changes = [
        f"--{name} {_said(before_options[name])} (now {_said(value)})"
        for name, value in asdict(now.options).items()
        if before_options[name] != value
    ]
    if list(earlier.sources) != list(now.sources):
        changes.append(f"--subset_name {' '.join(earlier.sources)} (now {' '.join(now.sources)})")
    for name, sources in now.sources.items():
        before = earlier.sources.get(name, sources)
        changed = [source.file for source in sources if source not in before]
        changed += [source.file for source in before if source.file not in {each.file for each in sources}]
        if not changed and before != sources:
            changed = [f"order of {name}'s sources"]
        changes += [f"another {file}" for file in changed]
    return ", ".join(changes)


def _said(value: Any) -> Any:
    """An option's value as on the command line."""
    return " ".join(f"{field}={column}" for field, column in value.items()) if isinstance(value, dict) else value
