"""The plan of a conversion: fixed before it starts and stored, so that a later run continues the same conversion."""

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
# Number of images per subset that are looked up before anything is written.
_PROBED_IMAGES = 20


@dataclass(frozen=True)
class Options:
    """The options that decide the shards' content; each is a flag of the same name.

    `columns` and `instruction` are for the user's own data, and are not stored if they are None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    split_name: str
    num_sample_per_subset: int | None
    rows_per_shard: int
    check_images: str
    columns: Mapping[str, str] | None = None
    instruction: str | None = None

    def content(self) -> dict[str, Any]:
        """The form in which plan and manifest store the options."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _OWN_OPTIONS}


_OWN_OPTIONS = ("columns", "instruction")
# 2,048 pairs with two photographs of 75 KB each make a shard of 300 MB. The fields have no defaults, so that a plan's
# file must name all of them.
DEFAULT_OPTIONS = Options("original", None, 2048, "decode")


@dataclass(frozen=True)
class ConversionPlan:
    """All shards to write, and the sources from which they are written."""

    options: Options
    tasks: Mapping[str, Sequence[ShardTask]]
    sources: Mapping[str, tuple[SourceRecord, ...]]

    def content(self) -> dict[str, Any]:
        """The content of the plan's file. Paths are relative, so that it does not depend on where the data is."""
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
            InputError: The file is damaged, or an option or source differs; the message names it.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        damaged = f"{path}: damaged (remove the folder and convert again)"
        version = parsed(_PLAN_VERSION_OF, data, damaged).plan_version
        if version != PLAN_VERSION:
            changes = f"a different version of this program ({version}, now {PLAN_VERSION})"
        else:
            changes = _changes(parsed(_PLAN_FILE, data, damaged), self)
        if changes:
            raise InputError(
                f"{path.parent}: was started with {changes}; use the same again, remove the folder, or choose a "
                "different one"
            )


def make_plan(source: Source, output_dir: Path, options: Options) -> ConversionPlan:
    """Cuts the subsets' tables into ranges of rows and identifies the sources by their checksums.

    Raises:
        InputError: Something is wrong with the folders, the subsets or the tables, a zip is not complete, a link leads
            out of the image folder, or the first images are all missing or unusable.
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
    """Cuts tables into ranges of rows; a limit keeps the first rows, as the original does."""
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
    """Looks up the first images, so that a wrong folder or an unreadable zip fails at once."""
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
    """The version of the plan's file; read first, because files of other versions need not match the schema."""

    plan_version: int


@dataclass(frozen=True)
class _PlanFile(_PlanVersion):
    """The plan's file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    options: Options
    sources: dict[str, tuple[SourceRecord, ...]]


_PLAN_VERSION_OF, _PLAN_FILE = TypeAdapter(_PlanVersion), TypeAdapter(_PlanFile)


def _changes(earlier: _PlanFile, now: ConversionPlan) -> str:
    """The differences between two plans, as text; "" if there are none."""
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
        changes += [f"a different {file}" for file in changed]
    return ", ".join(changes)


def _said(value: Any) -> Any:
    """An option's value as it is written on the command line."""
    return " ".join(f"{field}={column}" for field, column in value.items()) if isinstance(value, dict) else value
